-- Environments of a queue are filled in order: a node of a later one leaves a job to those of the earlier ones until it
-- has been ready for a while. Then they have no room for it, or they are not there.

-- -> for how many ms nodes of this environment leave a job of the queue to others; nil: they do not
local function overflow_of(queue, environment)
  return environment and redis.call('HGET', K.overflow, queue .. ' ' .. environment) or nil
end

-- -> in how many ms this node may take a job that has been ready since then; 0 or less: now
local function left_to_earlier(wait, ready)
  if not wait then return 0 end
  local since = now() - tonumber(ready or 0)
  return since < 0 and 0 or tonumber(wait) - since       -- a clock that went back must not hold it up
end
