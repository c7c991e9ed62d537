-- Claim a name for a stream before it is made, or assert that claim again, which renews its time to live.
-- KEYS: the name. ARGV: stream id, what the name stands for (a digest), replica, '1' where others can join the stream,
-- ms to live, '1' where its generation is over.
-- Answers {stream id, digest, replica, joinable, over} of the claim that holds: the caller's own, or the one that came
-- first.
local holder = redis.call('HGET', KEYS[1], 'stream')
if not holder or holder == ARGV[1] then
  redis.call('HSET', KEYS[1], 'stream', ARGV[1], 'digest', ARGV[2], 'replica', ARGV[3], 'joinable', ARGV[4], 'over', ARGV[6])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return redis.call('HMGET', KEYS[1], 'stream', 'digest', 'replica', 'joinable', 'over')
