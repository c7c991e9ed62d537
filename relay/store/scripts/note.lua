-- Note a generation under a name that several may have. KEYS: the name. ARGV: stream id, what is noted of it, ms to live.
-- Entry and time to live in one step: what dies in between leaves no name that stays for ever.
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
