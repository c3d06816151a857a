"""Whether this replica may take part: all of a fleet ask the same upstream, as the same account, with the same key.

What one hears from upstream is taken for true by all. So who asks another upstream, or as somebody else, would hand out
what is not its own to give. The first ones are right; each renews its claim, and half a minute after the last of them
is gone another one counts. Who is refused runs alone and tries again.
"""

from collections.abc import Mapping

from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.scripts import PREFACE
from registry_cache.fleet.signature import Signer
from registry_cache.model import events
from registry_cache.model.bus import Events

CLAIM_MS = 30_000
NOT_YET = "it is not known yet whether the others ask the same upstreams"

# KEYS: who may ask each registry. ARGV: ms, then the value of each. Gives the first that differs, or 0, with what it
# says, and the time. What does not end by itself is no replica's.
_JOIN = (
    PREFACE
    + """
local now = redis.call('TIME')
for number, key in ipairs(KEYS) do
  local held = kept(key, 300)
  if held and held ~= ARGV[number + 1] then
    local left = redis.call('PTTL', key)
    if left > 0 and left <= tonumber(ARGV[1]) then return {number, held, now[1], now[2]} end
  end
end
for number, key in ipairs(KEYS) do redis.call('SET', key, ARGV[number + 1], 'PX', ARGV[1]) end
return {0, '', now[1], now[2]}
"""
)


class Membership:
    """See the module.

    Args:
        prefix: of all keys of the fleet.
        registries: that are asked, by name: where, and as whom.
    """

    def __init__(
        self,
        redis: FleetRedis,
        signer: Signer,
        *,
        name: str,
        prefix: str,
        registries: Mapping[str, str],
        events: Events,
    ) -> None:
        self._redis = redis
        self._name = name
        self._key_mark = signer.seal("key", payload=b"")
        self._registries = sorted(registries)
        self._keys = [f"{prefix}who:{registry}" for registry in self._registries]
        self._marks = [
            f"{self._key_mark} {signer.seal('who', registry, payload=registries[registry].encode())}"
            for registry in self._registries
        ]
        self._events = events
        self.refusal = ""  # why this replica is none of the fleet; empty while it is
        redis.barred = NOT_YET

    def __repr__(self) -> str:
        return f"<Membership of {self._name} {self.refusal or 'holds'}>"

    @property
    def holds(self) -> bool:
        """Whether this replica takes part, as far as is known."""
        return not self._redis.barred

    async def look(self, *, patiently: bool = True) -> None:
        """Join, or stay.

        Raises:
            RedisDown: not now; what was so before stays.
        """
        number, held, seconds, microseconds = await self._redis.run(
            _JOIN, self._keys, [CLAIM_MS, *self._marks], patiently=patiently, joins=True
        )
        self._redis.told(int(seconds), int(microseconds))
        refusal = self._why(self._registries[number - 1], held) if number else ""
        if refusal != self.refusal:
            self._events.emit(
                events.FleetRefused(name=self._name, reason=refusal)
                if refusal
                else events.FleetAdmitted(name=self._name)
            )
        self.refusal = self._redis.barred = refusal
        if refusal:
            raise RedisDown(refusal)

    def _why(self, registry: str, held: bytes) -> str:
        if not held.startswith(self._key_mark.encode()):
            return "another replica of this fleet has another key: FLEET_KEY_FILE has to be the same for all"
        return f"another replica of this fleet asks {registry} at another address, or as another account"
