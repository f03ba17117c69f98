"""The mathematics: pure array functions; no parameters, configurations or I/O."""
