"""What is asked of Redis for questions that have an answer: one script for each step, as in :mod:`.scripts`.

Whatever is under a key that no replica would have written there, of another type or too long, is deleted unread.
"""

from registry_cache.fleet.scripts import NO_MAX_BYTES, PREFACE
from registry_cache.fleet.stream_scripts import STREAM

LEASE_MS = 3_000
LEASE_MAX_BYTES = 200
NO_MS = 5_000
# Tags that have moved: so many are kept for those that were away for a moment.
MOVES = 10_000
MOVE_MAX_BYTES = 1_000


# KEYS: answer, no, lease. ARGV: token|address, ttl of answers and of noes in us, since when they count at any age,
# most bytes of an answer, lease in ms, a lease that does not count, since when answers count at all. Answers of the
# future do not count; a no for mere trouble is for those who have waited for it.
ASK = (
    PREFACE
    + f"""
local now = now_us()
local function reply(what, value) return {{what, value, string.format('%.0f', now)}} end
local function counts(value, ttl)
  local at = asked(value)
  return at >= tonumber(ARGV[8]) and at <= now and (now - at < tonumber(ttl) or at >= tonumber(ARGV[4]))
end
local answer = kept(KEYS[1], ARGV[5])
if counts(answer, ARGV[2]) then return reply('known', answer) end
local no = kept(KEYS[2], {NO_MAX_BYTES})
if counts(no, no and string.find(no, '^%d+ trouble ') and 0 or ARGV[3]) then return reply('no', no) end
local held = kept(KEYS[3], {LEASE_MAX_BYTES})
if held and held ~= ARGV[7] then
  local left = redis.call('PTTL', KEYS[3])
  if left > 0 and left <= tonumber(ARGV[6]) then return reply('wait', held) end
end
redis.call('SET', KEYS[3], ARGV[1] .. string.format('|%.0f', now), 'PX', ARGV[6])
return reply('yours', '')
"""
)

# KEYS: answer, no, lease, moves, news. ARGV: token|address, answer or '', its seconds, no or '', the move to announce
# or '', most bytes of an answer. The answer to an earlier question replaces none to a later one; a no takes away what
# it is later than.
TELL = (
    STREAM
    + f"""
local before = kept(KEYS[1], ARGV[6])
local was = asked(before)
if was > now_us() then was = -1 end
if ARGV[2] ~= '' and asked(ARGV[2]) >= was then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
  redis.call('DEL', KEYS[2])
  local function mark(value) return value and string.match(value, '^%d+ (%S+) ') end
  if ARGV[5] ~= '' and mark(before) ~= mark(ARGV[2]) then
    append(KEYS[4], {MOVES}, ARGV[5])
    tell(KEYS[5])
  end
end
if ARGV[4] ~= '' then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', {NO_MS})
  local is_word = not string.find(ARGV[4], '^%d+ trouble ')
  if is_word and was <= asked(ARGV[4]) then redis.call('DEL', KEYS[1]) end
end
local held = kept(KEYS[3], {LEASE_MAX_BYTES})
if held and string.sub(held, 1, #ARGV[1] + 1) == ARGV[1] .. '|' then redis.call('DEL', KEYS[3]) end
return 1
"""
)

# KEYS: an answer. ARGV: its most bytes.
KEPT = PREFACE + "return {kept(KEYS[1], ARGV[1]) or '', string.format('%.0f', now_us())}"

# KEYS: leases. ARGV: ms, then token|address of each.
RENEW = (
    PREFACE
    + f"""
for number, key in ipairs(KEYS) do
  local held, mine = kept(key, {LEASE_MAX_BYTES}), ARGV[number + 1] .. '|'
  if held and string.sub(held, 1, #mine) == mine then redis.call('PEXPIRE', key, ARGV[1]) end
end
return 1
"""
)

LIMIT_MAX_BYTES = 2_000

# KEYS: gates and quotas. What is there of each.
LIMITS = (
    PREFACE
    + f"""
local found = {{}}
for number, key in ipairs(KEYS) do found[number] = kept(key, {LIMIT_MAX_BYTES}) or '' end
return found
"""
)

# KEYS: one of them; news, where all are to hear it at once. ARGV: value, ms. The later one stays; one that says to be
# of a day that is far counts for nothing.
LATEST = (
    PREFACE
    + f"""
local before, far = asked(kept(KEYS[1], {LIMIT_MAX_BYTES})), now_us() + 86400000000
if before > far or asked(ARGV[1]) > before then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  if KEYS[2] then tell(KEYS[2]) end
end
return 1
"""
)
