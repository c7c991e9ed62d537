-- Take what is due, so that no other replica does for a while.
-- KEYS: the outbox (a sorted set of streams by when each is to be looked at, in ms since 1970). ARGV: how many at most,
-- ms for which they are taken: whoever takes one and dies leaves it to others.
-- Answers {ms since 1970, stream, …}.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', ms), 'LIMIT', 0, ARGV[1])
for _, stream in ipairs(due) do
  redis.call('ZADD', KEYS[1], string.format('%.0f', ms + ARGV[2]), stream)
end
table.insert(due, 1, string.format('%.0f', ms))
return due
