"""What is asked of Redis about the bucket. A digest is its bytes, 32 or 64 of them, and its value ``size:generation``.

``size`` HASH has every blob that is in the bucket, ``lru`` ZSET its last use, or ``going`` ZSET since when it is being
deleted; ``bytes`` is their sum, whatever happens to whom in between. ``keep`` SET is not evicted. A value has a
generation so that who found an object missing does not forget one that has been shared since.
"""

# KEYS: size, going, bytes. ARGV: digest, size, cap. Whether it should be shared now.
ADMIT = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 'known' end
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 'going' end
if (tonumber(redis.call('GET', KEYS[3]) or '') or 0) + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return 'full' end
return 'share'
"""

_SIZE_OF = """
local function size_of(value) return tonumber(string.match(value or '', '^%d+') or 0) end
"""

# KEYS: size, lru, going, bytes, gen. ARGV: in threes, digest, size, Unix seconds of its last use or '' for now.
# How many of them were not known. What is being deleted is left to that.
SHARED = f"""{_SIZE_OF}
local added, total = 0, 0
local now = redis.call('TIME')[1]
for number = 1, #ARGV, 3 do
  local digest, size = ARGV[number], ARGV[number + 1]
  local known = redis.call('HGET', KEYS[1], digest)
  if not redis.call('ZSCORE', KEYS[3], digest) and not (known and string.match(known, '^%d+') == size) then
    if known then total = total - size_of(known) else added = added + 1 end
    redis.call('HSET', KEYS[1], digest, size .. ':' .. redis.call('INCR', KEYS[5]))
    redis.call('ZADD', KEYS[2], ARGV[number + 2] == '' and now or ARGV[number + 2], digest)
    total = total + tonumber(size)
  end
end
if total ~= 0 then redis.call('INCRBY', KEYS[4], string.format('%d', total)) end
return added
"""

# KEYS: size, lru, going, bytes. ARGV: in twos, digest, the value that is wrong. How many were forgotten.
FORGET = f"""{_SIZE_OF}
local count, total = 0, 0
for number = 1, #ARGV, 2 do
  local digest = ARGV[number]
  if redis.call('HGET', KEYS[1], digest) == ARGV[number + 1] then
    redis.call('HDEL', KEYS[1], digest)
    redis.call('ZREM', KEYS[2], digest)
    redis.call('ZREM', KEYS[3], digest)
    count, total = count + 1, total + size_of(ARGV[number + 1])
  end
end
if total ~= 0 then redis.call('DECRBY', KEYS[4], string.format('%d', total)) end
return count
"""

# KEYS: size, lru, going, and the mark of whom it is lent to, if it is. ARGV: digest, the least size, how many seconds
# the mark is kept. Its value if it is there, is not being deleted, and is that large; not again while the mark is kept.
LEND = f"""{_SIZE_OF}
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value or size_of(value) < tonumber(ARGV[2]) or redis.call('ZSCORE', KEYS[3], ARGV[1]) then return '' end
if KEYS[4] then
  if not redis.call('SET', KEYS[4], '1', 'NX', 'EX', ARGV[3]) then return '' end
  redis.call('ZADD', KEYS[2], 'XX', 'GT', redis.call('TIME')[1], ARGV[1])
end
return value
"""

# KEYS: lru. ARGV: digests that have been used. Redis's clock counts: a replica whose own is ahead keeps nothing alive.
TOUCH = """
local now = redis.call('TIME')[1]
for _, digest in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 'XX', 'GT', now, digest) end
return 1
"""

# KEYS: size, lru, going. ARGV: digests that an operator has purged: whoever evicts deletes them.
PURGED = """
local now = redis.call('TIME')[1]
for _, digest in ipairs(ARGV) do
  if redis.call('HEXISTS', KEYS[1], digest) == 1 then
    redis.call('ZREM', KEYS[2], digest)
    redis.call('ZADD', KEYS[3], 'NX', now, digest)
  end
end
return 1
"""

# KEYS: size, lru, going, bytes, keep. ARGV: what to come down to, in bytes; what may be condemned in one call.
# What is going, and how much is there now.
CONDEMN = f"""{_SIZE_OF}
local now = redis.call('TIME')[1]
local going = redis.call('ZRANGE', KEYS[3], 0, ARGV[2] - 1)
local left = tonumber(redis.call('GET', KEYS[4]) or '') or 0
for _, digest in ipairs(going) do left = left - size_of(redis.call('HGET', KEYS[1], digest)) end
if left > tonumber(ARGV[1]) and #going < tonumber(ARGV[2]) then
  for _, digest in ipairs(redis.call('ZRANGE', KEYS[2], 0, 2 * ARGV[2])) do
    if left <= tonumber(ARGV[1]) or #going >= tonumber(ARGV[2]) then break end
    if redis.call('SISMEMBER', KEYS[5], digest) == 1 then
      redis.call('ZADD', KEYS[2], now, digest)
    else
      redis.call('ZREM', KEYS[2], digest)
      redis.call('ZADD', KEYS[3], now, digest)
      going[#going + 1] = digest
      left = left - size_of(redis.call('HGET', KEYS[1], digest))
    end
  end
end
return going
"""

# KEYS: size, going, bytes. ARGV: digests that are deleted. What was freed, in bytes.
GONE = f"""{_SIZE_OF}
local total = 0
for _, digest in ipairs(ARGV) do
  if redis.call('ZREM', KEYS[2], digest) == 1 then
    total = total + size_of(redis.call('HGET', KEYS[1], digest))
    redis.call('HDEL', KEYS[1], digest)
  end
end
if total ~= 0 then redis.call('DECRBY', KEYS[3], string.format('%d', total)) end
return total
"""

# KEYS: q, bytes, going, meta, gen. ARGV: mine, ms. Whether the turn is mine, and how things are.
TURN = """
local held = redis.call('GET', KEYS[1])
local mine = not held or held == ARGV[1]
if mine then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return {
  mine and 1 or 0, redis.call('GET', KEYS[2]) or '0', redis.call('ZCARD', KEYS[3]),
  redis.call('HGET', KEYS[4], 'complete') or '0', redis.call('GET', KEYS[5]) or '0', redis.call('TIME')[1],
}
"""

# KEYS: q. ARGV: mine.
TURN_OVER = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""

# KEYS: size. ARGV: cursor, about how many. The next cursor, and digests with their values.
SCAN = """
return redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
"""

# KEYS: meta. The index has all that is in the bucket.
COMPLETE = """
redis.call('HSET', KEYS[1], 'complete', redis.call('TIME')[1])
return 1
"""
