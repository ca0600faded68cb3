"""One adapter per outside thing: kernel, files, network, service manager."""
