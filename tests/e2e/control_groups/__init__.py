"""A virtual machine with the second version of control groups, whatever this machine has."""
