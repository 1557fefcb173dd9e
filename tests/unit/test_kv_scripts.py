"""Scripts of Lua: the same as Redis, nothing gets out of them, and they end."""

from __future__ import annotations

import random
import re

import pytest

from tests.patience import FACTOR
from tests.redis_server import RawClient, redis_server, version_of
from tests.unit.test_kv_programs import Reached, in_front_of_redis, over_tcp, over_tls
from tests.unit.test_kv_server import LIMIT, ask
from workloads.kv import lua
from workloads.kv.arguments import Session
from workloads.kv.backend import EmbeddedStore
from workloads.kv.commands import COMMANDS, execute
from workloads.kv.databases import Journal
from workloads.kv.resp import command
from workloads.kv.server import RespMessages
from workloads.kv.store import Keyspace, open_databases

pytest.importorskip("lupa")


class Ours:
    """A client of the embedded store."""

    def __init__(self) -> None:
        self.keys = open_databases(16)
        self.keys.databases.journal = Journal()
        self.session = Session()

    def __call__(self, *args: bytes | str | int) -> bytes:
        words = [a if isinstance(a, bytes) else str(a).encode() for a in args]
        return execute(self.keys, words, self.session, 1000)


@pytest.fixture(scope="module")
def redis():
    with redis_server() as (path, _pid), RawClient(str(path)) as client:
        yield client


def _place(reply: bytes) -> bytes:
    """Without where it was in the script, which is not known of a ``return f()``."""
    return re.sub(rb" script: [0-9a-f]{40}(, on @user_script:\d+\.)?", b"", reply)


SCRIPTS = [
    "return 1", "return 3.99", "return -3.99", "return -0.5", "return 2^53", "return 1e300", "return 0/0",
    "return 'a\\0b\\r\\n\\255'", "return true", "return false", "return nil", "return", "return {}",
    "return {1,2.7,'x',false,{ok='fine'},nil,3}", "return {{1,{2,{3}}},'x'}", "return {ok='yes'}",
    "return {err='No way'}",
    "return {err='a\\r\\nb'}", "return {a=1}", "return redis.error_reply('MY error')",
    "return redis.error_reply('MY')",
    "return redis.error_reply('-MY error')", "return redis.status_reply('PONG')", "return redis.sha1hex('')",
    "return redis.sha1hex('a\\0b')", "return {KEYS[1],KEYS[2],ARGV[1],ARGV[2],#KEYS,#ARGV}",
    "return redis.call('SET',KEYS[1],ARGV[1])", "return redis.call('get',KEYS[1])",
    "return redis.call('get','none')",
    "return redis.call('get','none') == false", "return redis.call('incrby','n',10)",
    "return redis.call('set','f',1.5)",
    "return redis.call('get','f')", "return redis.call('set','f',2^60)", "return redis.call('get','f')",
    "return type(redis.call('incr','n'))", "redis.call('rpush','l',1,'b',3) return redis.call('lrange','l',0,-1)",
    "return redis.call('set','k1','x').ok", "return redis.call('lpush','k1',1)",
    "return redis.pcall('lpush','k1',1)",
    "return redis.pcall('lpush','k1',1).err", "local ok,e=pcall(redis.call,'lpush','k1',1) return {ok,e}",
    "return redis.call()", "return redis.pcall()", "return redis.call('nope')", "return redis.call('get')",
    "return redis.call('get','a','b')", "return redis.call('get',{})", "return redis.call('get',nil)",
    "return redis.pcall('get',true)", "redis.call('set','w1',1) error('x')", "return redis.call('get','w1')",
    "error('x')", "error({err='MINE x'})", "error('x',0)", "return x", "x=1 return x", "x.y=1",
    "function f() end", "return _G.nope", "_G.a=1", "return 1 +", "foo bar", "local a = nil return a.b",
    "return {} .. 'a'",
    "return redis.call('blpop','none',0)", "return redis.call('ping')", "return redis.call('echo','a\\0b')",
    "return redis.call('hmget','h','a','b')", "redis.call('hset','h','a',1) return redis.call('hgetall','h')",
    "return redis.call('type','h')", "return redis.call('exists',unpack({'h','n'}))",
    "return #redis.call('keys','*') > 2",
    "return table.concat({1,2,'x'},',')", "return ('x'):rep(3)", "return string.format('%05d %s %q',3,'a','b')",
    "return {string.find('hello world','o w'),string.match('k=v','(%w+)=(%w+)')}",
    "return string.gsub('abc','%w','%0%0')",
    "return tostring(1/3)", "return math.max(1,5,3)", "return {select('#',1,2,3)}", "return _VERSION",
    "return loadstring('return 1+1')()", "local t={3,1,2} table.sort(t) return t", "return tonumber('0x10')",
    "return coroutine.wrap(function() coroutine.yield(7) end)()", "return pcall(error,'x')", "return type(_G)",
    "local t=setmetatable({},{__index=function(_,i) if i<4 then return i end end}) return t[3]",
    "redis.setresp(3) return redis.call('hgetall','h')", "redis.setresp(3) return true",
    "redis.setresp(3) redis.call('sadd','s','a') return redis.call('smembers','s')",
    "redis.setresp(3) return redis.call('get','none')",
    "redis.setresp(4)", "return {double=1.5}", "return {map={a=1}}", "return {set={a=true}}",
    "redis.log(redis.LOG_DEBUG,'x')",
    "return redis.replicate_commands()", "return redis.call('set','k1','v','PX',100000)",
    "return redis.call('select','x')",
    "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end",
]


@pytest.mark.parametrize("version", [b"2", b"3"])
def test_the_same_as_redis(redis, version):
    ours = Ours()
    redis.send([b"FLUSHALL"], [b"HELLO", version])
    ours("HELLO", version)
    differ = []
    newer = version_of(redis) >= (7, 2)
    for text in SCRIPTS:
        call = [b"EVAL", text.encode(), b"2", b"k1", b"k2", b"v\0\r\n", b"2"]
        theirs, found = _place(redis.send(call)[0]), _place(ours(*call))
        if found != theirs and not (newer and text in CHANGED):
            differ.append((text, found, theirs))
    redis.send([b"HELLO", b"2"])
    assert not differ


#: Redis 7.2 and later let a script call these, and do not wait; ours are as Redis 7.0's.
WAITING = {"blpop", "brpop", "blmove", "brpoplpush", "bzpopmin", "bzpopmax"}
#: Scripts whose answers those change thereby, and since they write whole numbers of Lua without an exponent.
CHANGED = {"return redis.call('blpop','none',0)", "return redis.call('get','f')"}


CALLS = ["EVALSHA nope 0", "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0",
    "SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db x",
         "EVAL x", "EVAL x y", "SCRIPT", "SCRIPT LOAD", "SCRIPT FLUSH x", "SCRIPT FLUSH SYNC", "SCRIPT NOPE",
         "SCRIPT EXISTS",
         "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0"]


def test_calls_as_redis_has_them(redis):
    ours = Ours()
    redis.send([b"FLUSHALL"], [b"SCRIPT", b"FLUSH"])
    lines = [line.encode().split() for line in CALLS]
    lines += [[b"EVAL", b"return 1", n] for n in (b"-1", b"1", b"x", b"0")]
    lines += [[b"EVALSHA", lua.sha1(b"return 1").upper(), b"0"], [b"SCRIPT", b"LOAD", b"return KEYS[1]"],
              [b"EVALSHA", lua.sha1(b"return KEYS[1]"), b"1", b"k"], [b"EVALSHA_RO", lua.sha1(b"return 1"), b"0"],
              [b"EVAL_RO", b"return redis.call('set','a',1)", b"0"],
              [b"EVAL_RO", b"return redis.call('get','a')", b"0"]]
    for line in lines:
        assert _place(ours(*line)) == _place(redis.send(line)[0]), line


def test_a_script_calls_what_redis_lets_it_call(redis):
    ours, newer = Ours(), version_of(redis) >= (7, 2)
    for name, entry in COMMANDS.items():
        known = redis.send([b"COMMAND", b"INFO", name.encode()])[0]
        if entry.ours or known.startswith(b"*1\r\n*-1"):
            continue
        words = [name] + ([next(iter(entry.subcommands))] if entry.subcommands else [])
        arity = abs(entry.subcommands[words[1]] if entry.subcommands else entry.arity)
        words += ["0"] * (arity - len(words))
        text = f"return redis.pcall({','.join(repr(w) for w in words)})"
        refused = b"not allowed from script" in redis.send([b"EVAL", text.encode(), b"0"])[0]
        assert refused == (entry.no_script and not (newer and name.lower() in WAITING)), name
        assert (b"not allowed from script" in ours("EVAL", text, 0)) == entry.no_script, name


ESCAPES = [
    "os.execute('true')", "io.open('/etc/passwd')", "require('os')", "package.loaded.os", "debug.getinfo(1)",
    "dofile('x')",
    "loadfile('x')", "python.eval('1')", "newproxy(true)", "getfenv(0)", "setfenv(1,{})", "module('x')",
    "print('x')", "gcinfo()",
    "string.dump(function() end)", "('').dump(function() end)", "getmetatable('').__index.rep", "_G.os.time()",
    "_G.python.builtins",
    "assert(loadstring('\\27Lua'))", "assert(load(function() return '\\27Lua' end))",
    "loadstring('return os.time()')()",
    "loadstring('x=1')()", "rawset(_G,'x',1)", "rawset(string,'x',1)", "rawset(redis,'call',1)", "_G.pcall=1",
    "redis.call=1", "string.rep=1", "setmetatable(_G,{})", "setmetatable(redis,{})",
    "getmetatable(_G).__index.x", "math.x=1", "_G._G.x=1",
    "rawget(_G,'os').time()", "coroutine.wrap(function() return os.time() end)()", "setmetatable('',{})",
    "bridge('x')", "sethook()",
    "table.insert({},-2^31+1,1)", "string.rep('x',1e15)", "string.rep('a',1e5):find(string.rep('a*',20)..'b')",
    "string.rep('a',9e4):match(string.rep('a?',90)..'b')", "unpack({},1,1e8)", "string.format('%999999d',1)",
    "(function() local function f() return 1 + f() end return f() end)()",
    "string.rep('a',3e7):find(string.rep('a',1e7)..'b',1,true)",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_nothing_gets_out_of_a_script(text):
    ours = Ours()
    start = "" if text.endswith("=1") else "local found = "
    reply = ours("EVAL", f"{start}{text} return 'escaped'", 0)
    assert reply.startswith(b"-ERR"), reply
    assert ours("EVAL", "return {redis.call('ping').ok, ('x'):rep(2)}", 0) == b"*2\r\n$4\r\nPONG\r\n$2\r\nxx\r\n"


def test_what_a_script_can_reach_has_no_libraries_of_the_system():
    seen = Ours()("EVAL",
    "local t={} for _,l in ipairs({string,table,math,coroutine,redis}) do for _,k in ipairs({"
                  "'dump','execute','open','sethook','loadlib','eval','builtins','as_attrgetter'}) do "
                  "if l[k] then t[#t+1]=k end end end return t", 0)
    assert seen == b"*0\r\n"


ENDLESS = ["while true do end", "while true do pcall(function() while true do end end) end",
           "local t={} while true do t[#t+1]=redis.call('get','big') end",
           "local s='x' while true do pcall(function() s=s..s end) end",
           "while true do xpcall(function() while true do end end, function() while true do end end) end",
           "coroutine.wrap(function() while true do end end)()", "while true do coroutine.resume(coroutine.create("
           "function() while true do end end)) end", "local t={} for i=1,60 do t={t,t} end return t",
           "local s=('a'):rep(2000) while true do s:find('a*b') end",
           "for i=1,1e9 do redis.pcall('get','x') end", "return load(function() return ' ' end)",
           "local t = setmetatable({}, {__index=function(t,k) return t[k+1] end}) "
           "while true do pcall(function() return t[1] end) end"]
BOMBS = ["local s='x' while true do s=s..s end", "local t={} while true do t[#t+1]={} end",
    "local t={} t[1]=t return t",

        ]


@pytest.mark.parametrize("text", ENDLESS + BOMBS)
def test_every_script_ends(text, monkeypatch):
    if text in ENDLESS:
        monkeypatch.setattr(lua, "FIRST_S", 0.2)
        monkeypatch.setattr(lua, "ALL_S", 0.4)
    else:
        # Of a slow processor, as long as memory lasts.
        monkeypatch.setattr(lua, "FIRST_S", lua.FIRST_S * FACTOR)
        monkeypatch.setattr(lua, "ALL_S", lua.ALL_S * FACTOR)
    ours = Ours()
    ours("SET", "big", b"x" * (20 << 20))
    wanted = rb"processor time|not enough memory" if text in ENDLESS else rb"not enough memory|lua stack limit"
    assert re.search(wanted, ours("EVAL", text, 0)[-300:])
    assert ours("PING") == b"+PONG\r\n"


def test_what_was_written_before_the_end_stays_and_is_said(monkeypatch):
    monkeypatch.setattr(lua, "FIRST_S", 0.2)
    monkeypatch.setattr(lua, "ALL_S", 0.4)
    ours = Ours()
    assert b"stays" in ours("EVAL", "redis.call('set','a',1) while true do end", 0)
    assert ours("GET", "a") == b"$1\r\n1\r\n"
    assert ours.keys.databases.journal is not None
    assert ours.keys.databases.journal.take() == [[b"SET", b"a", b"1"]]


def test_without_lupa_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(lua, "lua51", None)
    assert b"pip install lupa" in Ours()("EVAL", "return 1", 0)


def test_scripts_watches_and_transactions():
    ours, other = Ours(), Session()
    execute(ours.keys, [b"WATCH", b"a"], other, 1000)
    ours("EVAL", "redis.call('set','a',1) redis.call('incr','a')", 0)
    execute(ours.keys, [b"MULTI"], other, 1000)
    assert execute(ours.keys, [b"EXEC"], other, 1000) == b"*-1\r\n"
    ours("MULTI")
    assert ours("EVAL", "return redis.call('incr','a')", 0) == b"+QUEUED\r\n"
    assert ours("EXEC") == b"*1\r\n:3\r\n"


def test_random_scripts_do_what_their_commands_do():
    chance = random.Random(5)
    one, two = Ours(), Ours()
    for _ in range(60):
        calls = [chance.choice([
            ["set", k, n], ["incrby", k, n], ["append", k, n], ["rpush", k, n], ["sadd", k, n], ["hset", k,
            "f", n],
            ["del", k],
            ["zadd", k, n, "m"], ["lpop", k], ["expire", k, "100"]])
            for k, n in [(chance.choice("abc"), str(chance.randrange(-9, 99))) for _ in range(6)]]
        text = " ".join("redis.pcall(" + ",".join(f"'{w}'" for w in c) + ")" for c in calls)
        one("EVAL", text, 0)
        for call in calls:
            two(*call)
        assert list(one.keys.snapshot()) == list(two.keys.snapshot())
        assert one.keys.databases.journal == two.keys.databases.journal


@pytest.mark.parametrize("where", [over_tcp, over_tls, in_front_of_redis])
def test_locks_and_scripts_of_redis_py(where, tmp_path):
    redis_py = pytest.importorskip("redis")
    with where(tmp_path) as reached, reached.redis() as client:
        assert isinstance(reached, Reached)
        lock = client.lock("lk", timeout=100)
        assert lock.acquire()
        assert not client.lock("lk", timeout=100).acquire(blocking=False)
        assert lock.extend(50)
        assert lock.reacquire()
        lock.release()
        with pytest.raises(redis_py.exceptions.LockError):
            lock.release()
        with pytest.raises(redis_py.exceptions.LockNotOwnedError), client.lock("lk", timeout=100):
            client.set("lk", "other")
        add = client.register_script("return redis.call('incrby', KEYS[1], ARGV[1])")
        assert [add(keys=["sum"], args=[n]) for n in (1, 2)] == [1, 3]
        client.script_flush()
        assert add(keys=["sum"], args=[1]) == 4
        assert client.script_exists(add.sha) == [True]


def test_over_messages_a_script_is_a_command_and_is_remembered():
    store = EmbeddedStore(Keyspace())
    messages = RespMessages(store, LIMIT)
    both = command([b"SET", b"k", b"v"]) + command([b"EVAL", b"return redis.call('get',KEYS[1])", b"1", b"k"])
    assert ask(messages, store, both) == b"+OK\r\n$1\r\nv\r\n"
    again = command([b"EVALSHA", lua.sha1(b"return redis.call('get',KEYS[1])"), b"1", b"k"])
    assert ask(messages, store, command([b"MULTI"]) + again + command([b"EXEC"])).endswith(b"*1\r\n$1\r\nv\r\n")


def test_nothing_is_left_of_a_script():
    freed = []
    ours = Ours()
    for text in ("return 1", "error('x')"):
        before = _resident()
        for _ in range(20):
            assert ours("EVAL", "local s = string.rep('x', 8000000) " + text, 0)
        freed.append(_resident() - before)
    assert max(freed) < 80_000_000


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * 4096


def test_a_database_that_a_script_selects_is_its_own(redis):
    ours = Ours()
    script = "redis.call('select', 1) redis.call('set', 'k', 'one') return redis.call('get', 'k')"
    for args in (["SET", "k", "zero"], ["EVAL", script, 0], ["GET", "k"], ["SELECT", 1], ["GET", "k"]):
        assert [ours(*args)] == redis.send([str(arg).encode() for arg in args])
    redis.send([b"SELECT", b"0"], [b"FLUSHALL"])
    assert ours.keys.databases.journal is not None
    assert ours.keys.databases.journal.take() == [
        [b"SET", b"k", b"zero"], [b"SELECT", b"1"], [b"SET", b"k", b"one"], [b"SELECT", b"0"]]
