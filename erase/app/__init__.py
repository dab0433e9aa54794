"""The before/after app: see what was erased, dial it, erase more; nothing here loads torch until it is needed."""
