"""One run: its folder opened, its items fed to whoever sends, its end told."""
