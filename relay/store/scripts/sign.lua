-- A replica's sign of life, and which replicas have given none for too long.
-- KEYS: the register of replicas (a sorted set by time). ARGV: replica, ms after which one is lost.
-- Answers the lost ones.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZADD', KEYS[1], string.format('%d', ms), ARGV[1])
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', ms - ARGV[2]))
