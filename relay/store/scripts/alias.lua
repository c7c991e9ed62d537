-- Give a stream a further name. KEYS: the name. ARGV: stream id, ms to live, proof of the two. Once a second stream has
-- been given it the name is nobody's.
-- Name and time to live in one step: what dies in between leaves no name that stays for ever.
local known = redis.call('HGET', KEYS[1], 'stream')
if known and known ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'ambiguous', '1')
else
  redis.call('HSET', KEYS[1], 'stream', ARGV[1], 'proof', ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
