"""The network-namespace lab that the demo and the tests share."""
