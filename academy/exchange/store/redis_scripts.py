"""What runs inside Redis: each script is one step that happens whole or not at all.

Redis runs a script without interruption, and takes nothing back when a command in its
middle fails. So a script checks all it can before it writes. Where memory has run out,
Redis refuses the first write of a script if that may need memory, and none that come
after the first write. What settles messages therefore comes before what adds some: it
can be done in a full Redis.

All keys of a namespace share a hash tag, hence one node of a cluster. Scripts are told
`META` (KEYS[1]) and make the names of the others from it.

==============  =======  ===========================================================
key             type     content
==============  =======  ===========================================================
P:meta          hash     token: of the owner; commit: number of the last one; last:
                         largest number of a message; sealed: the journal is valid
P:mailboxes     hash     uid -> JSON of a mailbox's record
P:sessions      hash     uid -> last message taken
P:boxes         set      uids of those that are not empty
P:box:UID       stream   NUMBER-0 -> h: header, p: payload; none when empty
P:leases:UID    hash     number -> lease, of messages whose lease has changed
P:expires       zset     UID/NUMBER -> when the message expires
P:references    hash     key of a body -> number, bytes and uid of its message
P:bodies        hash     key of a body -> in how many chunks it lies
P:body:KEY:I    string   a chunk of a body
P:journal       list     steps of a commit that is too large for one script
P:lease         string   who owns the namespace; ends by itself
==============  =======  ===========================================================

`P` is `academy:{NAMESPACE}` unless configured otherwise.
"""

from __future__ import annotations

_PREFIX = "local prefix = string.sub(KEYS[1], 1, -5)\n"

_CHECK = """
local meta = redis.call('hmget', KEYS[1], 'token', 'commit')
if meta[1] ~= ARGV[1] then
  return redis.error_reply('FENCED this server does not own the namespace any more')
end
"""
# A commit that is sent again, since its answer was lost, is known by its number. One
# that does not follow the last shows that Redis has lost what it had confirmed.
_CHECK_COMMIT = (
    _CHECK
    + """
local commit, done = tonumber(ARGV[2]), tonumber(meta[2] or 0)
if done ~= commit - 1 and done ~= commit then
  return redis.error_reply('GAP commit ' .. commit .. ' does not follow ' .. done)
end
"""
)
_APPLY = """
local function apply(ops, at)
  while at <= #ops do
    local op, uid = ops[at], ops[at + 1]
    local box, leases = prefix .. 'box:' .. uid, prefix .. 'leases:' .. uid
    if op == 's' then
      if redis.call('xdel', box, ops[at + 2]) == 1 then
        if redis.call('xlen', box) == 0 then
          redis.call('del', box, leases)
          redis.call('srem', prefix .. 'boxes', uid)
        else
          redis.call('hdel', leases, ops[at + 2])
        end
      end
      at = at + 3
    elseif op == 'a' then
      redis.call('sadd', prefix .. 'boxes', uid)
      redis.call('xadd', box, ops[at + 2], 'h', ops[at + 3], 'p', ops[at + 4])
      at = at + 5
    elseif op == 'q' then
      redis.call('hset', prefix .. 'sessions', uid, ops[at + 2])
      at = at + 3
    elseif op == 'l' then
      redis.call('hset', leases, ops[at + 2], ops[at + 3])
      at = at + 4
    elseif op == 'e' then
      redis.call('zadd', prefix .. 'expires', ops[at + 3], uid .. '/' .. ops[at + 2])
      at = at + 4
    elseif op == 'x' then
      redis.call('hdel', prefix .. 'mailboxes', uid)
      at = at + 2
    elseif op == 'b' then
      redis.call('hset', prefix .. 'references', uid, ops[at + 2])
      at = at + 3
    elseif op == 'u' then
      redis.call('hdel', prefix .. 'references', uid)
      at = at + 2
    elseif op == 'm' then
      redis.call('hset', prefix .. 'mailboxes', uid, ops[at + 2])
      at = at + 3
    else
      redis.call('unlink', box, leases)
      redis.call('srem', prefix .. 'boxes', uid)
      at = at + 2
    end
  end
end
"""

COMMIT = (
    _PREFIX
    + _CHECK_COMMIT
    + _APPLY
    + """
if done ~= commit then
  apply(ARGV, 4)
end
redis.call('hset', KEYS[1], 'commit', ARGV[2], 'last', ARGV[3])
return 1
"""
)
"""token, number of the commit, largest number of a message, operations..."""

STAGE = (
    _PREFIX
    + _CHECK_COMMIT
    + """
local journal, index, ops = prefix .. 'journal', tonumber(ARGV[3]), {}
if done == commit then
  return 1
end
if index == 0 then
  redis.call('del', journal)
elseif redis.call('llen', journal) > index then
  return 1
end
for i = 4, #ARGV do
  ops[i - 3] = ARGV[i]
end
return redis.call('rpush', journal, cmsgpack.pack(ops))
"""
)
"""token, number of the commit, how many steps came before, operations..."""

SEAL = (
    _CHECK_COMMIT
    + """
if done ~= commit then
  redis.call('hset', KEYS[1], 'sealed', 1)
end
redis.call('hset', KEYS[1], 'commit', ARGV[2], 'last', ARGV[3])
return 1
"""
)
"""token, number of the commit, largest number of a message. The staged steps count."""

REPLAY = (
    _PREFIX
    + _CHECK
    + _APPLY
    + """
local journal = prefix .. 'journal'
if not redis.call('hget', KEYS[1], 'sealed') then
  redis.call('del', journal)
  return 0
end
local step = redis.call('lpop', journal)
if step then
  apply(cmsgpack.unpack(step), 1)
end
local left = redis.call('llen', journal)
if left == 0 then
  redis.call('hdel', KEYS[1], 'sealed')
end
return left
"""
)
"""token. Does one step of a sealed journal, drops one that is not; what is left."""

STATE = (
    _CHECK
    + """
return redis.call('hmget', KEYS[1], 'commit', 'last')
"""
)
"""token. Number of the last commit, largest number of a message."""

WAITING = (
    _PREFIX
    + _CHECK
    + """
local found, bytes = {}, 0
for i = 4, #ARGV do
  local uid, after = ARGV[i], '-'
  if i == 4 and ARGV[3] ~= '' then after = '(' .. ARGV[3] end
  local box = prefix .. 'box:' .. uid
  local count, size = 0, 0
  while redis.call('exists', box) == 1 do
    local page = redis.call('xrange', box, after, '+', 'COUNT', 32)
    for _, entry in ipairs(page) do
      local payload = entry[2][4]
      count, size, after = count + 1, size + #payload, '(' .. entry[1]
      bytes = bytes + #payload
    end
    if #page < 32 then break end
    if bytes > tonumber(ARGV[2]) then
      found[#found + 1] = {uid, count, size}
      return {i - 4, string.sub(after, 2), found}
    end
  end
  if count > 0 then found[#found + 1] = {uid, count, size} end
end
return {#ARGV - 3, '', found}
"""
)
"""token, bytes to look at, where to go on in the first mailbox, uids...

Returns how many mailboxes are done with, where to go on in the next one, and count and
bytes of what was looked at.
"""

PENDING = (
    _PREFIX
    + _CHECK
    + """
local uid = ARGV[2]
local box, leases = prefix .. 'box:' .. uid, prefix .. 'leases:' .. uid
local page = redis.call('xrange', box, '(' .. ARGV[3], '+', 'COUNT', ARGV[4])
local changed = redis.call('exists', leases) == 1
local found = {}
for i, entry in ipairs(page) do
  local number = string.sub(entry[1], 1, -3)
  local lease = changed and redis.call('hget', leases, number)
  found[i] = {number, entry[2][2], entry[2][4], lease or ''}
end
return found
"""
)
"""token, uid, number after which to begin, how many: number, header, payload, lease."""

EXPIRED = (
    _PREFIX
    + _CHECK
    + """
local expires, found = prefix .. 'expires', {}
local due = redis.call(
  'zrangebyscore', expires, '-inf', ARGV[2], 'limit', 0, ARGV[3])
for _, member in ipairs(due) do
  local uid, number = string.match(member, '^(.*)/(%d+)$')
  local entry = redis.call('xrange', prefix .. 'box:' .. uid, number, number)[1]
  if entry then
    local lease = redis.call('hget', prefix .. 'leases:' .. uid, number)
    found[#found + 1] = {uid, number, entry[2][2], entry[2][4], lease or ''}
  else
    redis.call('zrem', expires, member)
  end
end
local first = redis.call('zrange', expires, 0, 0, 'withscores')
return {found, first[2] or ''}
"""
)
"""token, when, how many: messages as of `PENDING`, when the next one expires."""

TAKE = (
    _PREFIX
    + """
local lease = prefix .. 'lease'
local owner = redis.call('get', lease)
if owner == ARGV[1] then
  return {tonumber(redis.call('hget', KEYS[1], 'token')), owner}
elseif owner then
  return {0, owner}
end
redis.call('del', lease)
local token = redis.call('hincrby', KEYS[1], 'token', 1)
redis.call('set', lease, ARGV[1], 'px', ARGV[2])
return {token, ARGV[1]}
"""
)
"""who asks, milliseconds. The token, or 0; who owns the namespace."""

RENEW = (
    _PREFIX
    + """
if redis.call('hget', KEYS[1], 'token') ~= ARGV[1] then
  return 0
end
local lease = prefix .. 'lease'
if redis.call('pexpire', lease, ARGV[3]) == 0 then
  redis.call('set', lease, ARGV[2], 'px', ARGV[3])
end
return 1
"""
)
"""token, who asks, milliseconds. Whether the namespace is still theirs."""

GIVE_UP = (
    _PREFIX
    + """
if redis.call('hget', KEYS[1], 'token') == ARGV[1] then
  redis.call('del', prefix .. 'lease')
  redis.call('hincrby', KEYS[1], 'token', 1)
end
return 1
"""
)
"""token."""

ANNOUNCE = """
local time, found = redis.call('time'), {}
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('hdel', KEYS[1], ARGV[1])
local all = redis.call('hgetall', KEYS[1])
for i = 1, #all, 2 do
  local ends, count = string.match(all[i + 1], '(%d+) (%d+)')
  if tonumber(ends) < now then
    redis.call('hdel', KEYS[1], all[i])
  else
    found[#found + 1] = {all[i], tonumber(count)}
  end
end
redis.call('hset', KEYS[1], ARGV[1], string.format('%d %d', now + ARGV[3], ARGV[2]))
return found
"""
"""who, how many namespaces it has, milliseconds: the same of all others.

KEYS[1] is `academy:servers`, a hash: who -> when that ends, and how many namespaces.
"""

WRITE_BODY = (
    _PREFIX
    + _CHECK
    + """
local bodies, count = prefix .. 'bodies', tonumber(ARGV[3]) + 1
redis.call('setrange', prefix .. 'body:' .. ARGV[2] .. ':' .. ARGV[3], ARGV[4], ARGV[5])
if count > tonumber(redis.call('hget', bodies, ARGV[2]) or 0) then
  redis.call('hset', bodies, ARGV[2], count)
end
return 1
"""
)
"""token, key of the body, chunk, offset in it, bytes."""

READ_BODY = (
    _PREFIX
    + _CHECK
    + """
local chunk = prefix .. 'body:' .. ARGV[2] .. ':' .. ARGV[3]
return redis.call('getrange', chunk, ARGV[4], ARGV[5])
"""
)
"""token, key of the body, chunk, first and last offset in it."""

DELETE_BODY = (
    _PREFIX
    + _CHECK
    + """
local bodies = prefix .. 'bodies'
for chunk = 0, tonumber(redis.call('hget', bodies, ARGV[2]) or 0) - 1 do
  redis.call('unlink', prefix .. 'body:' .. ARGV[2] .. ':' .. chunk)
end
return redis.call('hdel', bodies, ARGV[2])
"""
)
"""token, key of the body."""
