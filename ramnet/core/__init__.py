"""Pure logic: values in, values and commands out. No I/O, no clock."""
