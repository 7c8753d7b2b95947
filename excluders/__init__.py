"""Rules that say which gallery images a query ignores: one file per rule, its name is the value of `--excluder`."""
