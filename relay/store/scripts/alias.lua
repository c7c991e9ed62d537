-- Give a stream a further name. KEYS: the name. ARGV: stream id, ms to live, '1' where the name goes to the latest
-- stream, whichever had it before: else it is nobody's once a second stream has been given it; proof of the two.
-- Name and time to live in one step: what dies in between leaves no name that stays for ever.
local known = redis.call('HGET', KEYS[1], 'stream')
if known and known ~= ARGV[1] and ARGV[3] ~= '1' then
  redis.call('HSET', KEYS[1], 'ambiguous', '1')
else
  redis.call('HSET', KEYS[1], 'stream', ARGV[1], 'proof', ARGV[4])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
