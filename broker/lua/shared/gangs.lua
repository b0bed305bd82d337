-- Gangs that wait: jobs that need several nodes at once. They stand in their queue's `gangs`, by score, and in no class:
-- no claim of a node finds them. `place` gives all nodes of one out in one step.

local function gang_add(queue, id, score)
  redis.call('ZADD', K.gangs(queue), score, id)
  redis.call('SADD', K.gang_queues, queue)
  redis.call('PUBLISH', K.duty, 'gangs')
end

local function gang_remove(queue, id)
  if redis.call('ZREM', K.gangs(queue), id) == 1 and redis.call('EXISTS', K.gangs(queue)) == 0 then
    redis.call('SREM', K.gang_queues, queue)
  end
end
