"""The intermediate representation: dialects ``nn`` and ``escalate``, modules, passes."""
