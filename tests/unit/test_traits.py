"""No spelling of a command hides its traits."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioredis_monitored._commands import traits
from aioredis_monitored._commands.table import TABLE
from aioredis_monitored._commands.traits import traits_of, traits_of_batch

OVERLAYS = [
    "_ALTERS_CONNECTION",
    "_OUT_OF_BAND",
    "_RETRY_SAFE",
    "_RUNS_CODE",
    "_MAY_BLOCK",
    "_COUNTS_CONNECTION_WRITES",
    "_BLOCKING",
]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_trait_overlay_names_only_commands_of_the_table(overlay):
    assert set() == set(getattr(traits, overlay)) - TABLE.keys()


# No spelling of a command hides its traits.

NAMES = sorted(traits._ALTERS_CONNECTION | traits._OUT_OF_BAND | (traits._BLOCKING.keys() - traits._MAY_BLOCK))
ODD = st.one_of(
    st.text(max_size=8),
    st.binary(max_size=8),
    st.integers(),
    st.floats(),
    st.none(),
    st.booleans(),
    st.binary(max_size=8).map(bytearray),
    st.binary(max_size=8).map(memoryview),
    st.lists(st.integers(), max_size=2),
    st.builds(object),
)


@st.composite
def written(draw, words):
    """Return a command's words in one of the spellings that redis-py accepts."""
    words = ["".join(draw(st.sampled_from([c.lower(), c.upper()])) for c in word) for word in words]
    joined = draw(st.integers(1, len(words)))
    gap = draw(st.sampled_from([" ", "  ", "\t", " \n "]))
    args = [draw(st.sampled_from(["", gap])) + gap.join(words[:joined]), *words[joined:]]
    kinds = [str.encode, str] if gap[0] == " " else [str]
    more = [str, str.encode, lambda text: bytearray(text, "ascii"), lambda text: memoryview(text.encode())]
    return [draw(st.sampled_from(kinds))(args[0]), *(draw(st.sampled_from(more))(word) for word in args[1:])]


@given(name=st.sampled_from(NAMES).flatmap(lambda name: written(name.split())), arguments=st.lists(ODD, max_size=4))
@example(name=["CLIENT" + " " * 70_000 + "REPLY OFF"], arguments=[])
@example(name=[" " * 70_000 + "SELECT 1"], arguments=[])
def test_unshareable_command_stays_unshareable_with_any_arguments(name, arguments):
    assert not traits_of([*name, *arguments]).shareable
    assert not traits_of_batch([["GET", "key"], [*name, *arguments]]).shareable


@given(
    name=st.sampled_from(["XREAD", "XREADGROUP"]).flatmap(lambda name: written([name])),
    front=st.lists(ODD, max_size=3),
    block=written(["BLOCK"]).map(
        lambda words: [word.strip() if isinstance(word, str | bytes) else word for word in words]
    ),
    arguments=st.lists(ODD, max_size=3),
)
def test_block_option_makes_xread_unshareable_in_any_spelling(name, front, block, arguments):
    assert not traits_of([*name, *front, *block, *arguments]).shareable


@given(st.lists(st.one_of(ODD, st.sampled_from(sorted(TABLE))), max_size=5))
def test_traits_never_raise_on_any_arguments(args):
    assert traits.Traits is type(traits_of(args))
    assert traits.Traits is type(traits_of_batch([args, args]))
    traits.blocking_timeout(args)
    traits.counts_connection_writes(args)


@pytest.mark.parametrize(
    "args",
    [(), ("CLIENT FOO",), ("CLIENT", "FOO"), (b"client", b"foo", 1), ("CONFIG", object()), ("NEW",), (None,), (1,)],
)
def test_unknown_command_gets_the_most_conservative_traits(args):
    assert (False, True, False, True) == traits_of(args)


@pytest.mark.parametrize("args", [("JSON.GET", "key"), (b"json.get", "key"), ("FT.SEARCH idx", "*")])
def test_module_command_does_not_alter_its_connection(args):
    assert (False, False, False, True) == traits_of(args)


@pytest.mark.parametrize("args", [("GET", "k"), ("get k",), (b"GET", "k"), ("XRANGE", "s", "-", "+"), ("INFO",)])
def test_read_only_commands_are_shareable_and_retry_safe(args):
    assert (True, False, True, False) == traits_of(args)
