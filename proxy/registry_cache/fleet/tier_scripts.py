"""What is asked of Redis about the bucket. A digest is its bytes, 32 or 64 of them, and its value ``size:generation``.

``size`` HASH has every blob that is in the bucket, ``lru`` ZSET its last use, or ``going`` ZSET since when it is being
deleted; ``bytes`` is their sum, whatever happens to whom in between. ``keep`` SET is not evicted. A value has a
generation so that who found an object missing does not forget one that has been shared since.

A sweep counts ``bytes`` anew: ``since`` of ``meta`` is the generation at its beginning, ``counted`` the sum of all that
is of a later one. SCAN gives a later one to whatever it comes by, so in the end that is the sum of all.

All KEYS begin with those of the index (``INDEX_KEYS``), whose names below are as in ``heal``.
"""

from registry_cache.fleet.scripts import INDEX

# entry: size and generation of a value; nothing of what is no value. changed: bytes are so many more, and so many of
# them are counted already. Less than nothing was no count: a sweep is due.
_INDEX = (
    INDEX
    + """
local size, lru, going, bytes, gen, meta = unpack(KEYS)
heal(unpack(KEYS, 1, 6))
local since = field(meta, 'counted') and field(meta, 'since')
local function entry(value)
  local held, generation = string.match(value or '', '^(%d+):(%d+)$')
  return counts(held) or 0, counts(generation) or 0
end
local function counted(held, generation) return since and generation > since and held or 0 end
local function size_of(digest) return (entry(redis.call('HGET', size, digest))) end
local function next_generation()
  local generation = string.format('%.0f', (number(gen) or 0) + 1)
  redis.call('SET', gen, generation)
  return generation
end
local function sum(before, by) return string.format('%.0f', math.min(math.max(0, before + by), 2 ^ 53)) end
local function changed(by, counted_by)
  local before = number(bytes) or 0
  redis.call('SET', bytes, sum(before, by))
  if before + by < 0 then redis.call('HDEL', meta, 'complete') end
  if since then redis.call('HSET', meta, 'counted', sum(field(meta, 'counted'), counted_by)) end
end
"""
)

# ARGV: digest, size, cap. Whether it should be shared now.
ADMIT = (
    _INDEX
    + """
if redis.call('HEXISTS', size, ARGV[1]) == 1 then return 'known' end
if redis.call('ZSCORE', going, ARGV[1]) then return 'going' end
if (number(bytes) or 0) + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return 'full' end
return 'share'
"""
)

# ARGV: in threes, digest, size, Unix seconds of its last use or '' for now. How many of them were not known.
# What is being deleted is left to that. What is known gets a last use if it has none.
SHARED = (
    _INDEX
    + """
local added, total, again = 0, 0, 0
local now = redis.call('TIME')[1]
for at = 1, #ARGV, 3 do
  local digest, told, used = ARGV[at], ARGV[at + 1], ARGV[at + 2] == '' and now or ARGV[at + 2]
  if not redis.call('ZSCORE', going, digest) then
    local known = redis.call('HGET', size, digest)
    if known and string.match(known, '^(%d+):') == told then
      redis.call('ZADD', lru, 'NX', used, digest)
    else
      local held, generation = entry(known)
      if not known then added = added + 1 end
      redis.call('HSET', size, digest, told .. ':' .. next_generation())
      redis.call('ZADD', lru, used, digest)
      total = total + tonumber(told) - held
      again = again + tonumber(told) - counted(held, generation)
    end
  end
end
if total ~= 0 or again ~= 0 then changed(total, again) end
return added
"""
)

# ARGV: in twos, digest, the value that is wrong. How many were forgotten.
FORGET = (
    _INDEX
    + """
local count, total, again = 0, 0, 0
for at = 1, #ARGV, 2 do
  local digest, value = ARGV[at], ARGV[at + 1]
  if redis.call('HGET', size, digest) == value then
    redis.call('HDEL', size, digest)
    redis.call('ZREM', lru, digest)
    redis.call('ZREM', going, digest)
    local held, generation = entry(value)
    count, total, again = count + 1, total + held, again + counted(held, generation)
  end
end
if total ~= 0 then changed(-total, -again) end
return count
"""
)

# KEYS: the mark of whom it is lent to, if it is. ARGV: digest, the least size, how many seconds the mark is kept.
# Its value if it is there, is not being deleted, and is that large; not again while the mark is kept.
LEND = (
    _INDEX
    + """
local value = redis.call('HGET', size, ARGV[1])
if not value or size_of(ARGV[1]) < tonumber(ARGV[2]) or redis.call('ZSCORE', going, ARGV[1]) then return '' end
if KEYS[7] then
  if not redis.call('SET', KEYS[7], '1', 'NX', 'EX', ARGV[3]) then return '' end
  redis.call('ZADD', lru, 'XX', 'GT', redis.call('TIME')[1], ARGV[1])
end
return value
"""
)

# ARGV: digests that have been used. Redis's clock counts: a replica whose own is ahead keeps nothing alive.
TOUCH = (
    _INDEX
    + """
local now = redis.call('TIME')[1]
for _, digest in ipairs(ARGV) do redis.call('ZADD', lru, 'XX', 'GT', now, digest) end
return 1
"""
)

# ARGV: digests. For each whether it is there, and is not being deleted.
KNOWN = (
    _INDEX
    + """
local found = {}
for number, digest in ipairs(ARGV) do
  found[number] = redis.call('HEXISTS', size, digest) == 1 and not redis.call('ZSCORE', going, digest) and 1 or 0
end
return found
"""
)

# ARGV: digests that an operator has purged: whoever evicts deletes them.
PURGED = (
    _INDEX
    + """
local now = redis.call('TIME')[1]
for _, digest in ipairs(ARGV) do
  if redis.call('HEXISTS', size, digest) == 1 then
    redis.call('ZREM', lru, digest)
    redis.call('ZADD', going, 'NX', now, digest)
  end
end
return 1
"""
)

# KEYS: keep. ARGV: what to come down to, in bytes; what may be condemned in one call. What is going.
CONDEMN = (
    _INDEX
    + """
is_kind(KEYS[7], 'set')
local now = redis.call('TIME')[1]
local gone = redis.call('ZRANGE', going, 0, ARGV[2] - 1)
local left = number(bytes) or 0
for _, digest in ipairs(gone) do left = left - size_of(digest) end
if left > tonumber(ARGV[1]) and #gone < tonumber(ARGV[2]) then
  for _, digest in ipairs(redis.call('ZRANGE', lru, 0, 2 * ARGV[2])) do
    if left <= tonumber(ARGV[1]) or #gone >= tonumber(ARGV[2]) then break end
    if redis.call('SISMEMBER', KEYS[7], digest) == 1 then
      redis.call('ZADD', lru, now, digest)
    else
      redis.call('ZREM', lru, digest)
      redis.call('ZADD', going, now, digest)
      gone[#gone + 1] = digest
      left = left - size_of(digest)
    end
  end
end
return gone
"""
)

# ARGV: digests that are deleted. What was freed, in bytes.
GONE = (
    _INDEX
    + """
local total, again = 0, 0
for _, digest in ipairs(ARGV) do
  if redis.call('ZREM', going, digest) == 1 then
    local held, generation = entry(redis.call('HGET', size, digest))
    redis.call('HDEL', size, digest)
    total, again = total + held, again + counted(held, generation)
  end
end
if total ~= 0 then changed(-total, -again) end
return total
"""
)

# KEYS: q. ARGV: mine, ms. Whether the turn is mine, and how things are. A turn that does not end by itself is no
# replica's.
TURN = (
    _INDEX
    + """
local held, left = kept(KEYS[7], 100), redis.call('PTTL', KEYS[7])
local mine = not held or held == ARGV[1] or left < 0 or left > tonumber(ARGV[2])
if mine then redis.call('SET', KEYS[7], ARGV[1], 'PX', ARGV[2]) end
return {
  mine and 1 or 0, number(bytes) or 0, redis.call('ZCARD', going), field(meta, 'complete') or 0,
  tonumber(redis.call('TIME')[1]),
}
"""
)

# KEYS: q. ARGV: mine.
TURN_OVER = (
    _INDEX
    + """
if kept(KEYS[7], 100) == ARGV[1] then redis.call('DEL', KEYS[7]) end
return 1
"""
)

# All is to be counted anew. Gives by what this count is known.
RECOUNT = (
    _INDEX
    + """
local generation = string.format('%.0f', number(gen) or 0)
redis.call('HSET', meta, 'since', generation, 'counted', '0')
return generation
"""
)

# ARGV: cursor, about how many. The next cursor, and digests with their values; while all is counted, only those that
# are counted by this. A generation that has not been given yet is nobody's.
SCAN = (
    _INDEX
    + """
local found = redis.call('HSCAN', size, ARGV[1], 'COUNT', ARGV[2])
if not since then return found end
local flat, entries, again, newest, later = found[2], {}, 0, number(gen) or 0, nil
for at = 1, #flat, 2 do
  local held, generation = entry(flat[at + 1])
  if generation <= since or generation > newest then
    later = later or next_generation()
    local value = string.format('%.0f:', held) .. later
    redis.call('HSET', size, flat[at], value)
    again = again + held
    entries[#entries + 1] = flat[at]
    entries[#entries + 1] = value
  end
end
if again > 0 then changed(0, again) end
return {found[1], entries}
"""
)

# ARGV: what RECOUNT gave. Whether the index has all that is in the bucket now: not if all is counted anew meanwhile.
COMPLETE = (
    _INDEX
    + """
if not since or string.format('%.0f', since) ~= ARGV[1] then return 0 end
redis.call('SET', bytes, redis.call('HGET', meta, 'counted'))
redis.call('HDEL', meta, 'since', 'counted')
redis.call('HSET', meta, 'complete', redis.call('TIME')[1])
return 1
"""
)
