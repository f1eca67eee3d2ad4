"""Check what this machine cannot run itself: the code for macOS and for Linux on ARM."""
