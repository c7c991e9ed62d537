-- Claim a name for a stream before it is made, or assert that claim again, which renews its time to live.
-- KEYS: the name. ARGV: stream id, what the name stands for (a digest), replica, '1' where others can join the stream,
-- ms to live, '1' where its generation is over, ms since 1970 at which it was claimed ('0': now).
-- Answers {stream id, digest, replica, joinable, over, at} of the claim that holds: the caller's own, or another's. Of
-- two claims the earlier one holds, but not one that is only there because the store has lost what came after it: a
-- claim that is asserted again was once in the store, and so an earlier claim had been given back by then.
local held = redis.call('HMGET', KEYS[1], 'stream', 'at')
local at = tonumber(ARGV[7])
if not held[1] or held[1] == ARGV[1] or at > (tonumber(held[2]) or 0) then
  if at == 0 then
    local now = redis.call('TIME')
    at = held[2] or string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
  end
  redis.call('HSET', KEYS[1], 'stream', ARGV[1], 'digest', ARGV[2], 'replica', ARGV[3], 'joinable', ARGV[4], 'over', ARGV[6],
    'at', at)
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return redis.call('HMGET', KEYS[1], 'stream', 'digest', 'replica', 'joinable', 'over', 'at')
