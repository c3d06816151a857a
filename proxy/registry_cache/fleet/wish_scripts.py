"""What is asked of Redis for purges and pins, as in :mod:`.question_scripts`."""

from registry_cache.fleet.scripts import PREFACE
from registry_cache.fleet.stream_scripts import STREAM

WISH_MAX_BYTES = 2_000
PINS_MAX = 10_000
# More than that in thirty days, and who was away for so long misses the first.
PURGES_MAX = 10_000
PURGES_AT_ONCE = 100
_PURGES_KEPT_MS = 30 * 86_400_000

# KEYS: purges, news. ARGV: some of them, in their order. Whether there is no more room: the first ones go.
PURGED = (
    STREAM
    + f"""
for _, one in ipairs(ARGV) do append(KEYS[1], {PURGES_MAX}, one) end
redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', now_us() / 1000 - {_PURGES_KEPT_MS}))
tell(KEYS[2])
return redis.call('XLEN', KEYS[1]) >= {PURGES_MAX} and 1 or 0
"""
)

# KEYS: pins, their version, news. ARGV: the new version, then field and value of each. The later wish stays.
PIN = (
    PREFACE
    + f"""
is_kind(KEYS[1], 'hash')
for number = 2, #ARGV, 2 do
  local field, value = ARGV[number], ARGV[number + 1]
  local before = redis.call('HSTRLEN', KEYS[1], field) <= {WISH_MAX_BYTES} and redis.call('HGET', KEYS[1], field)
  local was = asked(before)
  local has_room = before or redis.call('HLEN', KEYS[1]) < {PINS_MAX}
  if has_room and (was < asked(value) or was > now_us()) then redis.call('HSET', KEYS[1], field, value) end
end
redis.call('SET', KEYS[2], ARGV[1])
tell(KEYS[3])
return 1
"""
)

# KEYS: pins, their version. ARGV: the version that is known. The version, and all that is wished if it is another one.
PINS = (
    PREFACE
    + f"""
local version, values = kept(KEYS[2], 100) or '0', {{}}
if version == ARGV[1] then return {{version, values}} end
is_kind(KEYS[1], 'hash')
local cursor, steps = '0', 0
repeat
  local found = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', 500)
  cursor, steps = found[1], steps + 1
  for number = 2, #found[2], 2 do
    local value = found[2][number]
    if #value <= {WISH_MAX_BYTES} then values[#values + 1] = value end
  end
until cursor == '0' or steps >= 2 * {PINS_MAX} / 500
return {{version, values}}
"""
)
