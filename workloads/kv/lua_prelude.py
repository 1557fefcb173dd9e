"""What is around a script, in Lua: the libraries it may use, its globals, ``redis``, conversions, bounds.

It is run in a runtime of its own for each script and gives a function without arguments that does the script. All
that passes between Python and Lua are strings, by one function, and only where Lua can bear an error: ``bridge``.
"""

PRELUDE = rb"""
local bridge, MEMORY, RESERVE, FIRST_S, ALL_S = ...
local assert, error, getmetatable, ipairs, next, pairs = assert, error, getmetatable, ipairs, next, pairs
local pcall, rawequal, rawget, rawset, select = pcall, rawequal, rawget, rawset, select
local setfenv, setmetatable, tonumber, tostring = setfenv, setmetatable, tonumber, tostring
local type, unpack = type, unpack
local xpcall, loadstring, collectgarbage = xpcall, loadstring, collectgarbage
local sethook, getinfo, clock = debug.sethook, debug.getinfo, os.clock
local byte, find, format, gsub, match = string.byte, string.find, string.format, string.gsub, string.match
local rep, sub = string.rep, string.sub
local concat, insert, huge, ceil, floor = table.concat, table.insert, math.huge, math.ceil, math.floor
local create, resume = coroutine.create, coroutine.resume

-- Bounds. What is too long stays so: no pcall of the script goes on after it.
local began, allowed, over = clock(), FIRST_S, nil
local function check()
  if not over and clock() - began > allowed then
    over = 'ERR the script took more than ' .. allowed .. ' s of processor time'
    if allowed > FIRST_S then over = over .. '; what it has written stays' end
  end
  if over then error({err = over}, 0) end
end
sethook(check, '', 100)
local function after(...)
  if over then error({err = over}, 0) end
  return ...
end
local function timed(f)
  return function(...)
    check()
    return f(...)
  end
end
local function room(wanted)
  -- Python cannot bear that there is none when it gives something to Lua.
  if collectgarbage('count') * 1024 + wanted + RESERVE > MEMORY then
    collectgarbage()
    if collectgarbage('count') * 1024 + wanted + RESERVE > MEMORY then error('not enough memory', 0) end
  end
end
local function ask(...)
  check()
  room(0)
  local reply = bridge(...)
  if not reply then error('not enough memory', 0) end
  return reply
end

-- A pattern may go back as often as this; within one of them nothing can be interrupted.
local STEPS = 2e8
local function steps(s, p, anchors)
  local again, tail, doubled, i, n = 0, 0, 0, 1, #p
  if n > 4096 then return huge end
  local anchored = anchors and byte(p, 1) == 94
  while i <= n do
    local c = sub(p, i, i)
    if c == '%' then
      local d = sub(p, i + 1, i + 1)
      if d == 'b' then i = i + 2 end
      if d == 'b' or find(d, '%d') then again = again + 1 end
      i, tail = i + 2, 0
    elseif c == '[' then
      i = i + 1
      if sub(p, i, i) == '^' then i = i + 1 end
      repeat
        i = i + (sub(p, i, i) == '%' and 2 or 1)
      until i > n or sub(p, i, i) == ']'
      i, tail = i + 1, 0
    elseif c == '*' or c == '+' or c == '-' then
      again, i, tail = again + 1, i + 1, 1
    elseif c == '?' then
      doubled, i, tail = doubled + 1, i + 1, 0
    else
      -- What ends the pattern is never tried again.
      if c ~= ')' then tail = 0 end
      i = i + 1
    end
  end
  return (#s + 1) ^ (again - tail + (anchored and 0 or 1)) * 2 ^ doubled
end
local function patterned(f, anchors)
  return function(s, p, a, b)
    check()
    if type(s) == 'number' then s = tostring(s) end
    if type(p) == 'number' then p = tostring(p) end
    if type(s) == 'string' and type(p) == 'string' then
      if f == find and (b or not find(p, '[%^%$%*%+%?%.%(%[%%%-]')) then
        if #s * #p > STEPS * 20 then error('too much to search', 2) end
      elseif steps(s, p, anchors) > STEPS then
        error('pattern too complex for a string of ' .. #s .. ' bytes', 2)
      end
    end
    return f(s, p, a, b)
  end
end

local lib = {math = {}, string = {}, table = {}, coroutine = {}}
for name, from in pairs({math = math, table = table}) do
  for k, v in pairs(from) do lib[name][k] = type(v) == 'function' and timed(v) or v end
end
for _, k in ipairs({'byte', 'char', 'format', 'len', 'lower', 'reverse', 'sub', 'upper'}) do
  lib.string[k] = timed(string[k])
end
lib.string.find = patterned(find, true)
lib.string.match = patterned(match, true)
lib.string.gmatch = patterned(string.gmatch, false)
lib.string.gsub = patterned(gsub, true)
lib.string.rep = function(s, n)
  check()
  if type(s) == 'number' then s = tostring(s) end
  if type(s) == 'string' and tonumber(n) then
    if s == '' then return '' end
    if tonumber(n) * #s > MEMORY then error('not enough memory', 2) end
  end
  return rep(s, n)
end
lib.table.insert = function(t, ...)
  check()
  if select('#', ...) > 1 and (tonumber((...)) or 0) < 0 then error('position out of bounds', 2) end
  return insert(t, ...)
end
for k, v in pairs(coroutine) do lib.coroutine[k] = v end
lib.coroutine.create = function(f)
  check()
  local made = create(f)
  sethook(made, check, '', 100)
  return made
end
lib.coroutine.resume = function(...) return after(resume(...)) end
lib.coroutine.wrap = function(f)
  local made = lib.coroutine.create(f)
  local function give(ok, ...)
    if not ok then error((...), 0) end
    return ...
  end
  return function(...) return give(after(resume(made, ...))) end
end

-- Globals: those there are, and no others.
local globals = {math = lib.math, string = lib.string, table = lib.table, coroutine = lib.coroutine,
  assert = assert, error = error, ipairs = ipairs, next = next, pairs = pairs, rawequal = rawequal,
  rawget = rawget,
  select = select, tonumber = tonumber, tostring = tostring, type = type, unpack = unpack,
  _VERSION = _VERSION, setmetatable = setmetatable, getmetatable = getmetatable}
local function caught(ok, e, ...)
  -- As Redis: an error of a command is its text.
  if not ok and type(e) == 'table' and type(rawget(e, 'err')) == 'string' then return false, rawget(e, 'err') end
  return ok, e, ...
end
globals.pcall = function(...) return caught(after(pcall(...))) end
globals.xpcall = function(f, handle)
  -- Not by xpcall: a handler of what check() raises would be run within the hook, and nothing interrupts that.
  local function handled(ok, e, ...)
    if ok then return ok, e, ... end
    return false, select(2, after(pcall(handle, e)))
  end
  return handled(after(pcall(f)))
end
local closed = {}
globals.rawset = function(t, k, v)
  if closed[t] then error('Attempt to modify a readonly table', 2) end
  return rawset(t, k, v)
end
globals.collectgarbage = function(what)
  check()
  if what == 'count' then return collectgarbage('count') end
  collectgarbage()
  return 0
end
local function close(t, complaint)
  local shown = setmetatable({}, {__metatable = false, __newindex = function()
    error('Attempt to modify a readonly table', 2)
  end, __index = complaint and function(_, k)
    local v = rawget(t, k)
    if v == nil then error(complaint .. tostring(k) .. "'", 2) end
    return v
  end or t})
  closed[shown] = true
  return shown
end
for name in pairs(lib) do globals[name] = close(lib[name]) end
local env = close(globals, "Script attempted to access nonexistent global variable '")
globals._G = env
local function compile(text, name)
  check()
  if byte(text, 1) == 27 then return nil, 'truncated precompiled chunk' end
  local f, why = loadstring(text, name)
  if f then setfenv(f, env) end
  return f, why
end
globals.loadstring = function(text, name) return compile(tostring(text), name and tostring(name)) end
globals.load = function(read, name)
  local parts = {}
  while true do
    local part = read()
    if part == nil or part == '' then break end
    if type(part) ~= 'string' then error('reader function must return a string', 2) end
    parts[#parts + 1] = part
  end
  return compile(concat(parts), name and tostring(name) or '=(load)')
end
-- ("x"):rep() finds its functions there.
local strings = getmetatable('')
strings.__index, strings.__metatable = lib.string, false

-- Replies of commands, as RESP, into values of Lua; and back.
local function parse(text, at)
  local stop = find(text, '\r\n', at, true)
  local kind, line, at = sub(text, at, at), sub(text, at + 1, stop - 1), stop + 2
  if kind == '+' then return {ok = line}, at end
  if kind == '-' then return {err = line}, at end
  if kind == ':' then return tonumber(line), at end
  if kind == ',' then
    return {double = tonumber(line) or (line == 'inf' and huge) or (line == '-inf' and -huge) or 0/0}, at
  end
  if kind == '#' then return line == 't', at end
  if kind == '_' then return nil, at end
  local n = tonumber(line)
  if n < 0 then return false, at end
  if kind == '$' then return sub(text, at, at + n - 1), at + n + 2 end
  local found, key = {}, nil
  if kind == '%' then
    for _ = 1, n do
      key, at = parse(text, at)
      found[key], at = parse(text, at)
    end
    return {map = found}, at
  end
  for i = 1, n do
    if kind == '~' then
      key, at = parse(text, at)
      found[key] = true
    else
      found[i], at = parse(text, at)
    end
  end
  return kind == '~' and {set = found} or found, at
end
local inner, outer = '2', '2'
local function line(text) return (gsub(text, '[\r\n]', ' ')) end
local function whole(v)
  if v ~= v or v >= 2 ^ 63 or v < -2 ^ 63 then return '-9223372036854775808' end
  return (gsub(format('%.0f', v < 0 and ceil(v) or floor(v)), '^%-0$', '0'))
end
local function render(v, out, depth)
  if depth > 100 then
    out[#out + 1] = '-ERR reached lua stack limit\r\n'
    return
  end
  local kind = type(v)
  local nothing = outer == '3' and '_\r\n' or '$-1\r\n'
  local text = nothing
  if kind == 'string' then text = '$' .. #v .. '\r\n' .. v .. '\r\n'
  elseif kind == 'number' then text = ':' .. whole(v) .. '\r\n'
  elseif kind == 'boolean' then
    if inner == '3' then text = outer == '3' and (v and '#t\r\n' or '#f\r\n') or (v and ':1\r\n' or ':0\r\n')
    else text = v and ':1\r\n' or nothing end
  elseif kind == 'table' then
    if type(rawget(v, 'err')) == 'string' then text = '-' .. line(rawget(v, 'err')) .. '\r\n'
    elseif type(rawget(v, 'ok')) == 'string' then text = '+' .. line(rawget(v, 'ok')) .. '\r\n'
    elseif type(rawget(v, 'double')) == 'number' then
      local d = format('%.17g', rawget(v, 'double'))
      text = outer == '3' and ',' .. d .. '\r\n' or '$' .. #d .. '\r\n' .. d .. '\r\n'
    else
      local map, set = rawget(v, 'map'), rawget(v, 'set')
      local members, n = {}, 0
      if type(map) == 'table' then
        for k, m in next, map do
          render(k, members, depth + 1)
          render(m, members, depth + 1)
          n = n + 1
        end
        text = outer == '3' and '%' .. n .. '\r\n' or '*' .. 2 * n .. '\r\n'
      elseif type(set) == 'table' then
        for k in next, set do
          render(k, members, depth + 1)
          n = n + 1
        end
        text = (outer == '3' and '~' or '*') .. n .. '\r\n'
      else
        while rawget(v, n + 1) ~= nil do
          n = n + 1
          render(rawget(v, n), members, depth + 1)
        end
        text = '*' .. n .. '\r\n'
      end
      out[#out + 1] = text
      text = concat(members)
    end
  end
  out[#out + 1] = text
end

-- What Redis has in its table.
local redis = {LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3}
local function failure(text) return {err = text} end
local function perform(...)
  local n = select('#', ...)
  if n == 0 then return failure('ERR Please specify at least one argument for this redis lib call') end
  local args = {...}
  for i = 1, n do
    local kind = type(args[i])
    if kind == 'number' then args[i] = format('%.17g', args[i])
    elseif kind ~= 'string' then
      return failure('ERR Lua redis lib command arguments must be strings or integers')
    end
  end
  local reply = ask('call', inner, unpack(args, 1, n))
  if byte(reply, 1) == 119 then allowed = ALL_S end
  return (parse(reply, 2))
end
redis.pcall = perform
redis.call = function(...)
  local reply = perform(...)
  if type(reply) == 'table' and reply.err then error(reply, 0) end
  return reply
end
local function one(name, ...)
  if select('#', ...) ~= 1 or type((...)) ~= 'string' then return 'wrong number or type of arguments' end
end
redis.error_reply = function(...)
  if one('err', ...) then return failure('ERR ' .. one('err', ...)) end
  local text = (...)
  if sub(text, 1, 1) == '-' then text = sub(text, 2)
  elseif not find(text, ' ', 1, true) then text = 'ERR ' .. text end
  return failure(text)
end
redis.status_reply = function(...)
  if one('ok', ...) then return failure('ERR ' .. one('ok', ...)) end
  return {ok = (...)}
end
redis.sha1hex = function(...)
  if select('#', ...) ~= 1 then error('wrong number of arguments', 2) end
  return ask('sha1', tostring((...)))
end
redis.setresp = function(...)
  if select('#', ...) ~= 1 then error('redis.setresp() requires one argument.', 0) end
  if (...) ~= 2 and (...) ~= 3 then error('RESP version must be 2 or 3.', 0) end
  inner = tostring((...))
end
redis.replicate_commands = function() return true end
redis.log = function(level, text)
  if type(level) ~= 'number' or text == nil then error('redis.log() requires two arguments or more.', 2) end
end
globals.redis = close(redis)

for _, t in ipairs({string, table, math, coroutine, os, io, debug, package.loaded, package}) do
  for k in pairs(t) do t[k] = nil end
end
local all = _G
for k in pairs(all) do all[k] = nil end

local function explain(e)
  -- Nothing of the script is done after this.
  sethook()
  if over then return {err = over} end
  local at = getinfo(2, 'Sl')
  local level = 2
  -- Where in the script it was, not in what is around it.
  while at and at.short_src ~= 'user_script' do
    level = level + 1
    at = getinfo(level, 'Sl')
  end
  if type(e) ~= 'table' then e = {err = 'ERR ' .. tostring(e)} end
  if type(e.err) ~= 'string' then e = {err = 'ERR unknown error'} end
  return {err = e.err, line = at and at.currentline}
end
return function()
  outer = ask('version')
  local sha = ask('sha')
  globals.KEYS, globals.ARGV = parse(ask('keys'), 1), parse(ask('argv'), 1)
  local text = ask('script')
  local f, why = compile(text, '@user_script')
  if not f then return '-ERR Error compiling script (new function): ' .. line(why) .. '\r\n' end
  local ok, v = xpcall(f, explain)
  if ok then
    ok, v = xpcall(function()
      local out = {}
      render(v, out, 0)
      return concat(out)
    end, explain)
    if ok then return v end
  end
  sethook()
  collectgarbage()
  if type(v) ~= 'table' then v = {err = 'ERR ' .. tostring(v)} end
  local where = v.line and ', on @user_script:' .. v.line .. '.' or ''
  return '-' .. line(v.err) .. (over and '' or ' script: ' .. sha .. where) .. '\r\n'
end
"""
