-- Fair share. A queue's jobs stand in lanes, one a share, each a ready index of its own (index.lua); whose turn it is
-- depends on what each share has used: vCPU-seconds, decayed, those of running jobs as they go, times its weight.
--
-- A share's line in K.share_use is "<vCPU-s> <ms> <milli-vCPU running>": its use at that time. K.shares orders those that
-- have jobs ready by ln(use) + t / tau, which stands still while a share runs nothing and grows while it runs something:
-- so a line that is out of date is too low, never too high, and only the first of the order has to be made up to date.
-- Weights are no part of it, so that they may change at any time.

local SHARES = 500               -- active ones in a queue
local AHEAD = 1                  -- s; what is handed out counts for so long at once, so that one call's jobs are shared out

-- -> decayed use in vCPU-seconds and milli-vCPU running, at t
local function used_by(fair, line, t)
  if not line then return 0, 0, t end
  local use, at, running = string.match(line, '^(%S+) (%S+) (%S+)$')
  use, at, running = tonumber(use), tonumber(at), tonumber(running)
  local steady = running / 1000 * fair.tau
  return steady + (use - steady) * math.exp(-math.max(0, t - at) / 1000 / fair.tau), running, at
end

local function turn_of(fair, use, running, t)
  local u = use + running / 1000 * AHEAD
  if u < 1e-9 then return -math.huge end
  return math.log(u) + t / 1000 / fair.tau
end

local function score_text(x) return x == -math.huge and '-inf' or string.format('%.17g', x) end

local function use_line(use, running, t)
  return string.format('%.17g %.0f %.0f', use, t, running)
end

local function fair_policy(queue) return policy_of(queue).fair or DEFAULT_FAIR end

-- All lines anew: after a change of the window, or of the clock.
local function rescore(queue, fair, t)
  local all = redis.call('HGETALL', K.share_use(queue))
  for i = 1, #all, 2 do
    local use, running = used_by(fair, all[i + 1], t)
    redis.call('HSET', K.share_use(queue), all[i], use_line(use, running, t))
    redis.call('ZADD', K.shares(queue), 'XX', score_text(turn_of(fair, use, running, t)), all[i])
  end
end

-- A job of so many milli-vCPU begins (or, negative, ends) to run.
local function share_runs(queue, share, mc)
  local fair, t = fair_policy(queue), now()
  local use, running, at = used_by(fair, redis.call('HGET', K.share_use(queue), share), t)
  if at > t + 1000 then rescore(queue, fair, t) end                 -- the clock went back
  running = math.max(0, running + mc)
  redis.call('HSET', K.share_use(queue), share, use_line(use, running, t))
  redis.call('ZADD', K.shares(queue), 'XX', score_text(turn_of(fair, use, running, t)), share)
end

-- -> the weight of a share in the policy, and the prefix by which it was found
local function weight_in(fair, share)
  local found = fair.found[share]
  if not found then
    found = {fair.exact[share] or 1}
    for _, prefix in ipairs(fair.exact[share] and {} or fair.prefixes) do
      if string.sub(share, 1, #prefix[1]) == prefix[1] then found = {prefix[2], prefix[1]} end
    end
    fair.found_size = (fair.found_size or 0) + 1
    if fair.found_size > 4 * SHARES then fair.found, fair.found_size = {}, 1 end
    fair.found[share] = found
  end
  return found[1], found[2]
end

local function kin(queue, fair, share, by)
  local _, prefix = weight_in(fair, share)
  if prefix and redis.call('HINCRBY', K.share_kin(queue), prefix, by) <= 0 then
    redis.call('HDEL', K.share_kin(queue), prefix)
  end
end

-- Whether one more share may be active.
local function share_welcome(queue, share)
  return redis.call('HEXISTS', K.share_open(queue), share) == 1 or redis.call('HLEN', K.share_open(queue)) < SHARES
end

-- A job of the share has come (counted once); the share is active until a window after its last job has ended.
local function share_opened(queue, share, id)
  if redis.call('HSETNX', K.job(id), 'counted', 1) == 0 then return end
  if redis.call('HEXISTS', K.share_open(queue), share) == 0 then kin(queue, fair_policy(queue), share, 1) end
  redis.call('HINCRBY', K.share_open(queue), share, 1)
  redis.call('ZREM', K.resting(queue), share)
end

local function share_closed(queue, share, id)
  if redis.call('HDEL', K.job(id), 'counted') == 0 then return end
  if redis.call('HINCRBY', K.share_open(queue), share, -1) <= 0 then
    redis.call('ZADD', K.resting(queue), num(now() + fair_policy(queue).window * 1000), share)
  end
end

-- Shares that had no job for a window.
local function forget_shares(queue, limit)
  for _, share in ipairs(redis.call('ZRANGEBYSCORE', K.resting(queue), '-inf', num(now()), 'LIMIT', 0, limit)) do
    if tonumber(redis.call('HGET', K.share_open(queue), share) or 0) <= 0 then
      kin(queue, fair_policy(queue), share, -1)
      redis.call('HDEL', K.share_open(queue), share)
      redis.call('HDEL', K.share_use(queue), share)
    end
    redis.call('ZREM', K.resting(queue), share)
  end
  if redis.call('EXISTS', K.share_open(queue)) == 0 then redis.call('DEL', K.news(queue)) end
end

-- A lane has one job more, or less. news: those who looked at the lane in vain must look again.
local function lane_grew(queue, share, news)
  if news then redis.call('SET', K.news(queue), redis.call('INCR', K.sequence)) end
  if redis.call('HINCRBY', K.share_waits(queue), share, 1) == 1 then
    local fair, t = fair_policy(queue), now()
    local use, running = used_by(fair, redis.call('HGET', K.share_use(queue), share), t)
    redis.call('ZADD', K.shares(queue), score_text(turn_of(fair, use, running, t)), share)
  end
end

local function lane_shrank(queue, share)
  if redis.call('HINCRBY', K.share_waits(queue), share, -1) <= 0 then
    redis.call('HDEL', K.share_waits(queue), share)
    redis.call('ZREM', K.shares(queue), share)
  end
end
