"""What replicas are told one after the other: streams, as in :mod:`.scripts`.

An id is a time of Redis's, and the next one is never smaller, however the clock goes: behind a failover to one that is
seconds behind, ids go on where they were. What was lost with the old one may have had larger ids; then who has heard
them begins again.
"""

from registry_cache.fleet.scripts import PREFACE

# parsed: an id as two numbers. newest: the largest id that a stream has ever had; less than any if there is none.
# append: an id that no clock gives was written by somebody else, and behind the last of all none could follow.
STREAM = (
    PREFACE
    + """
local function parsed(id)
  local ms, number = string.match(id, '^(%d+)%-?(%d*)$')
  return tonumber(ms), tonumber(number) or 0
end
local function newest(key)
  if not is_kind(key, 'stream') or redis.call('EXISTS', key) == 0 then return -1, 0 end
  local said = redis.call('XINFO', 'STREAM', key)
  for at = 1, #said, 2 do
    if said[at] == 'last-generated-id' then return parsed(said[at + 1]) end
  end
end
local function append(key, most, value)
  if newest(key) > 2 ^ 53 then redis.call('UNLINK', key) end
  redis.call('XADD', key, 'MAXLEN', '~', most, '*', 'e', value)
end
"""
)

# KEYS: stream. ARGV: the id of the last one that was heard, how many at most, most bytes of one, where to begin again.
# Gives the id to go on from, and the entries.
HEARD = (
    STREAM
    + """
local last, entries = ARGV[1], {}
local ms, number = parsed(last)
local newest_ms, newest_number = newest(KEYS[1])
if newest_ms < ms or (newest_ms == ms and newest_number < number) then last = ARGV[4] end
for _, one in ipairs(redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', ARGV[2])) do
  last = one[1]
  local value = one[2][2]
  if value and #value <= tonumber(ARGV[3]) then entries[#entries + 1] = value end
end
return {last, entries}
"""
)
