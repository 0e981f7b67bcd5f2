"""Random commands according to the server's grammar of each, with a test's values in the places of values."""


class Sentence:
    """A random command that its grammar in ``COMMAND DOCS`` allows.

    Args:
        name: The full name of the command.
        grammar: Its ``arguments``.
        chance: Random numbers.
        value_of: Returns a value for an argument of the grammar.
        key: The prefix of every key; a number follows.

    Attributes:
        args: The command.
        keys: The keys among them.
        fields: The names of hash fields among them.
    """

    def __init__(self, name, grammar, chance, value_of, *, key="key"):
        self._chance, self._value_of, self._key = chance, value_of, key
        # The same number in the whole command: XREAD requires as many ids as keys.
        self._repetitions = chance.randint(1, 3)
        self.keys, self.fields, self._counts = [], [], []
        self.args = name.split()
        self._add(grammar)
        for position, counted, before in self._counts:
            self.args[position] = str(len(counted) - before)

    def _add(self, grammar):
        for argument in grammar:
            flags = argument.get("flags", ())
            if "optional" in flags and self._chance.random() < 0.5:
                continue
            for repetition in range(self._repetitions if "multiple" in flags else 1):
                if "token" in argument and (not repetition or "multiple_token" in flags):
                    self.args += argument["token"].split() or [""]
                self._add_one(argument)

    def _add_one(self, argument):
        match argument:
            case {"type": "pure-token"}:
                pass
            case {"type": "oneof", "arguments": choices}:
                self._add([self._chance.choice(choices)])
            case {"type": "block", "arguments": parts}:
                self._add(parts)
            case {"name": "numkeys"}:
                self._add_count(self.keys)
            case {"name": "numfields"}:
                self._add_count(self.fields)
            case {"type": "key"}:
                self._add_name(self._key, self.keys)
            case {"name": "field"}:
                self._add_name("field", self.fields)
            case _:
                self.args.append(self._value_of(argument))

    def _add_count(self, counted):
        self._counts.append((len(self.args), counted, len(counted)))
        self.args.append("")

    def _add_name(self, beginning, names):
        names.append(f"{beginning}{len(names)}")
        self.args.append(names[-1])
