"""Every `lora-drop ...`: a module a command, each with `add_parser` (`options.command`)."""
