"""The `openshape` command, one file a verb."""
