-- queue_gone(queue) -> 1; 0 when a job of it has not ended: then all stays
-- What is kept of a queue beside its jobs: counters, its first job, what its shares have used.
-- Keys: states, head, the shares'.
register('queue_gone', function(_, argv)
  local queue = argv[1]
  for _, state in ipairs({'SUBMITTED', 'PENDING', 'RUNNABLE', 'STARTING', 'RUNNING'}) do
    if tonumber(redis.call('HGET', K.states(queue), state) or 0) > 0 then return 0 end
  end
  redis.call('DEL', K.states(queue), K.head(queue), K.shares(queue), K.share_use(queue), K.share_open(queue),
    K.share_kin(queue), K.share_waits(queue), K.resting(queue), K.news(queue))
  return 1
end)
