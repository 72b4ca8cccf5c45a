"""Keys and roles of the service."""

import asyncio

import fastapi
import httpx
import pytest

from moecl_jax.errors import UserError
from moecl_jax.service.keys import LOCAL, VARIABLE, Holder, Keys, Role, require

CALLER, ADMIN = "a" * 16, "b" * 40
LINES = f"# keys\ncaller batch {CALLER}\n\nadmin  ops {ADMIN}\n"


def written(tmp_path, text):
    path = tmp_path / "keys"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_keys_come_from_a_file_or_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"reviewer ana {'c' * 16},caller batch {CALLER}")
    from_file, from_environment = Keys.load(written(tmp_path, LINES)), Keys.load()
    assert from_file.holder_of(f"Bearer {ADMIN}") == Holder("ops", Role.ADMIN)
    assert from_file.role_of(f"bearer {CALLER}") == Role.CALLER
    assert from_environment.holder_of(f"Bearer {'c' * 16}") == Holder("ana", Role.REVIEWER)
    assert from_environment.role_of(f"Bearer {ADMIN}") is None


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Basic {CALLER}", f"Bearer {CALLER[:-1]}", CALLER,
               f"Bearer {CALLER}x", "Bearer \udcff", f"Bearer {CALLER} {CALLER}"]
)  # fmt: skip
def test_a_wrong_or_missing_key_has_no_role(tmp_path, header):
    assert Keys.load(written(tmp_path, LINES)).role_of(header) is None


def test_without_keys_everybody_is_local(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    keys = Keys.load()
    assert not keys
    assert keys.holder_of(None) == keys.holder_of("Bearer x") == LOCAL


def test_all_keys_are_compared_whichever_is_right(tmp_path, monkeypatch):
    import hmac

    compared = []
    keys = Keys.load(written(tmp_path, LINES))
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(len(b)) or real(a, b))
    for key in (CALLER, ADMIN, "no key", "x" * 10_000):
        keys.role_of(f"Bearer {key}")
    assert compared == [32] * 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# none\n", "holds no key"),
        (f"boss ops {ADMIN}", "line 1: expected ROLE NAME KEY, ROLE being one of caller, reviewer"),
        (f"admin {ADMIN}", "line 1: expected ROLE NAME KEY"),
        (f"admin o:s {ADMIN}", "the name 'o:s'"),
        (f"admin ops {'a,' * 16}", "without a comma"),
        ("admin ops short", "the key of ops must be at least 16"),
        (f"admin ops {'ä' * 16}", "printable ASCII"),
        (f"{LINES}caller other {CALLER}", "line 5: this key or name occurs before"),
        (f"{LINES}caller batch {'d' * 16}", "line 5: this key or name occurs before"),
        (b"admin ops \xff", "not UTF-8"),
    ],
)
def test_malformed_keys_are_refused_without_being_shown(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        Keys.load(written(tmp_path, text))
    assert message in str(caught.value)
    assert ADMIN not in str(caught.value)


def test_a_route_lets_in_its_role_and_those_above(tmp_path):
    app = fastapi.FastAPI()
    app.state.keys = Keys.load(written(tmp_path, f"{LINES}reviewer ana {'c' * 16}"))

    @app.get("/")
    def name(holder: Holder = fastapi.Depends(require(Role.REVIEWER))) -> str:  # noqa: B008
        return holder.name

    async def asked(key):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/", headers={"Authorization": f"Bearer {key}"})

    responses = [asyncio.run(asked(key)) for key in ("c" * 16, ADMIN, CALLER, "wrong")]
    assert [response.status_code for response in responses] == [200, 200, 403, 401]
    assert [response.json() for response in responses[:2]] == ["ana", "ops"]
    assert responses[3].headers["www-authenticate"] == "Bearer"
