"""What each command does with its words: a file a command, every one a call of a public function."""
