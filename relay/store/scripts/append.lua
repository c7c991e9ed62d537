-- Append to several streams in one go: append before emit, all of a flush at once.
-- KEYS: log 1, meta 1, log 2, meta 2, …
-- ARGV: retention ms, tombstone ms; then for each: fence, expected top, outcome ('' while it goes on), usage to note
-- with it or, while it goes on, where the upstream stands at the last of the frames ('' where that is as it was), number
-- of frames, the frames; with an outcome the end mark's content is the last of them.
-- Answers, for each: {code, top}; with an end that stands, and where readers have come on other replicas, how often.
--   1 OK        the frames stand at expected top + 1 …, and the end mark where an outcome was given
--   2 FENCED    someone else has ended this stream, or has taken it over: stop, emit nothing more
--   3 MISMATCH  the log's top is not the expected one: a reply was lost (top is higher) or entries were (lower)
--   4 GONE      the log is not there
-- A fence above the one that is there is good: the store has lost who took the stream over, and `renew` says it again.
-- Where others have ended it meanwhile, that is FENCED, too; who has ended it itself may say so again.
-- A hole cannot be made: frames go in only right after the expected top.
-- Entry ids: <n>-0 is event n, <n>-1 is the end mark after event n. The channel tells whoever tails the stream.
local out = {}
local a = 3
for k = 1, #KEYS, 2 do
  local log, meta = KEYS[k], KEYS[k + 1]
  local fence, expected, outcome = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2]
  local usage, n = ARGV[a + 3], tonumber(ARGV[a + 4])
  a = a + 5
  local m = redis.call('HMGET', meta, 'fence', 'top', 'end')
  local top = tonumber(m[2])
  local code = 1
  if not m[1] then
    code, top = 4, 0
  elseif m[1] ~= fence and tonumber(m[1]) > tonumber(fence) then
    code = 2
  elseif top ~= expected then
    code = 3
  elseif m[3] and (m[3] ~= outcome or n > 1) then
    code = 2
  elseif not m[3] then
    local events = outcome == '' and n or n - 1
    for i = 0, events - 1 do
      top = top + 1
      redis.call('XADD', log, string.format('%d-0', top), 'f', ARGV[a + i])
    end
    if events > 0 then
      if outcome == '' and usage ~= '' then
        redis.call('HSET', meta, 'top', string.format('%d', top), 'at', usage)
      else
        redis.call('HSET', meta, 'top', string.format('%d', top))
      end
      if expected == 0 then
        redis.call('PEXPIRE', log, redis.call('HGET', meta, 'ttl'))
      end
    end
    if outcome ~= '' then
      redis.call('XADD', log, string.format('%d-1', top), 'end', ARGV[a + n - 1])
      local now = redis.call('TIME')
      redis.call('HSET', meta, 'end', outcome, 'usage', usage, 'ended', string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000)))
      redis.call('PEXPIRE', log, ARGV[1])
      redis.call('PEXPIRE', meta, ARGV[1] + ARGV[2])
    end
    redis.call('SPUBLISH', log, '')
  end
  local visits
  if outcome ~= '' and code == 1 then
    visits = tonumber(redis.call('HGET', meta, 'visits') or '')
  end
  a = a + n
  out[#out + 1] = { code, top, visits }
end
return out
