-- The last reader of a stream on a replica has left. KEYS: meta. ARGV: the replica.
-- Answers 1, or 0 where that replica was not known to have readers of it.
local left = redis.call('HDEL', KEYS[1], 'r:' .. ARGV[1])
if left == 1 then
  local now = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'seen', string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000)))
end
return left
