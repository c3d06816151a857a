"""What is asked of Redis: each question is one script, so that it is one round trip and two replicas cannot both win.

Keys of a digest: ``l:`` the lease (``token|address`` of who fetches it), ``at:`` the address of who has it,
``x:REPOSITORY@`` upstream's no. A value that does not say what is expected is overwritten: a lease is a hint.
"""

LEASE_MS = 10_000
VERDICT_MS = 5_000
# Who has it says so again whenever somebody follows; an address without the blob is forgotten by who finds that out.
AT_SECONDS = 7 * 86_400
NO_MAX_BYTES = 2_000
NEWS_MAX_BYTES = 100

# What nobody of the fleet would have written, of another type or too long, is deleted unread. is_kind: whether a key is
# of the type that it should be; if not, it goes. The type is asked for, no error is taken for it: a Redis that is full
# or may not be written says no as well, and then the script ends with that, and nothing goes. asked: the time in clear
# at the beginning of what is sealed, or -1. tell: all are to hear what has been written here (news.py).
PREFACE = """
local function is_kind(key, kind)
  local found = redis.call('TYPE', key).ok
  if found == kind or found == 'none' then return true end
  redis.call('UNLINK', key)
  return false
end
local function kept(key, most)
  if not is_kind(key, 'string') then return false end
  local size = redis.call('STRLEN', key)
  if size > tonumber(most) then
    redis.call('UNLINK', key)
    return false
  end
  return size > 0 and redis.call('GET', key)
end
local function asked(value) return value and tonumber(string.match(value, '^(%d+) ')) or -1 end
local function now_us()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end
local function tell(news) redis.call('SET', news, string.format('%.0f', now_us())) end
"""

# The keys of the bucket's index (tier_scripts.py), as each script that asks it has them.
INDEX_KEYS = ("size", "lru", "going", "bytes", "gen", "meta")

# What is no index goes: of another type, no number, or without sizes. Then a sweep is due, which makes it anew, and so
# it is where a size is neither in use nor going: it would never be evicted. Uses without a size are left: those are.
# counts: what is a number as Redis itself writes them, of 16 digits at most. field: such a one of meta.
INDEX = (
    PREFACE
    + """
local function counts(value)
  return value and #value <= 16 and (value == '0' or string.match(value, '^[1-9]%d*$')) and tonumber(value)
end
local function number(key) return counts(kept(key, 16)) end
local function field(meta, name)
  return redis.call('HSTRLEN', meta, name) <= 16 and counts(redis.call('HGET', meta, name))
end
local function heal(size, lru, going, bytes, gen, meta)
  local lost = false
  for key, kind in pairs({[size] = 'hash', [lru] = 'zset', [going] = 'zset', [meta] = 'hash'}) do
    lost = not is_kind(key, kind) or lost
  end
  local total = number(bytes)
  local sizes = redis.call('HLEN', size)
  if sizes > 0 then
    if not total then redis.call('SET', bytes, '0') end
    lost = lost or not total or sizes > redis.call('ZCARD', lru) + redis.call('ZCARD', going)
  elseif total ~= 0 and redis.call('UNLINK', bytes, lru, going) > 0 then
    redis.call('HDEL', meta, 'since')
    lost = true
  end
  if redis.call('EXISTS', gen) == 1 and not number(gen) then redis.call('SET', gen, redis.call('TIME')[1]) end
  if lost then redis.call('HDEL', meta, 'complete') end
end
"""
)

# KEYS: l, at, x, and those of the index. ARGV: mine, my address, what was just seen to be dead, lease in ms, seconds
# of at, the digest's bytes, 1 if the bucket may bring it (tier_scripts.py).
# A lease or a place at one's own address that is not known here is of an earlier life.
CLAIM = (
    INDEX
    + f"""
local function answer(what, value)
  local now = redis.call('TIME')
  return {{what, value, now[1], now[2]}}
end
local mine, address, lost = ARGV[1], ARGV[2], ARGV[3]
if ARGV[7] == '1' then
  heal(unpack(KEYS, 4))
  local shared = redis.call('HGET', KEYS[4], ARGV[6])
  if shared and not redis.call('ZSCORE', KEYS[6], ARGV[6]) then
    redis.call('ZADD', KEYS[5], 'XX', 'GT', redis.call('TIME')[1], ARGV[6])
    return answer('stored', shared)
  end
end
local at = kept(KEYS[2], 100)
if at and (at == lost or at == address) then
  redis.call('DEL', KEYS[2])
  at = false
end
if at then
  redis.call('EXPIRE', KEYS[2], ARGV[5])
  return answer('at', at)
end
local held = kept(KEYS[1], 200)
if held and held ~= lost and string.sub(held, -#address - 1) ~= '|' .. address then
  return answer('lead', held)
end
if not held then
  local no = kept(KEYS[3], {NO_MAX_BYTES})
  if no then return answer('failed', no) end
end
redis.call('SET', KEYS[1], mine, 'PX', ARGV[4])
if ARGV[7] == '1' and redis.call('HEXISTS', KEYS[9], 'complete') == 0 then return answer('yours', 'look') end
return answer('yours', '')
"""
)

# KEYS: leases. ARGV: lease in ms, then the value of each. What of them is not ours any more.
RENEW = (
    PREFACE
    + """
local lost = {}
for number, key in ipairs(KEYS) do
  local held = kept(key, 200)
  if held and held ~= ARGV[number + 1] then
    lost[#lost + 1] = number
  else
    redis.call('SET', key, ARGV[number + 1], 'PX', ARGV[1])
  end
end
return lost
"""
)

# KEYS: l, at, x. ARGV: mine, the address that has it or '', seconds of at, upstream's no or '', its ms.
RELEASE = (
    PREFACE
    + """
if kept(KEYS[1], 200) == ARGV[1] then redis.call('DEL', KEYS[1]) end
if ARGV[2] ~= '' then redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3]) end
if ARGV[4] ~= '' then redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[5]) end
return 1
"""
)

# KEYS: one that holds what no replica has written.
DROP = "return redis.call('DEL', KEYS[1])"
