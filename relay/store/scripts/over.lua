-- Which of several streams are over for good. KEYS: their meta hashes. ARGV: lease ms.
-- Answers, for each: ms since 1970 at which it ended, where its lease has lapsed for longer than a lease since; 0 where it
-- goes on, or has only just ended; -1 where it is to be looked at by itself: it is not there, or its producer is lost.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local out = {}
for k = 1, #KEYS do
  local m = redis.call('HMGET', KEYS[k], 'end', 'ended', 'lease')
  if not m[3] or (m[1] and not m[2]) or (not m[1] and m[3] - ms < 0) then
    out[k] = -1
  else
    out[k] = m[1] and m[3] - ms < -tonumber(ARGV[1]) and tonumber(m[2]) or 0
  end
end
return out
