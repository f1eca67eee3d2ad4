"""What only a Mac can show: the list of ``docs/MAC.md``, gone through by a program."""
