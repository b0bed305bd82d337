-- head(queue, id, code or '', text, fresh ms) -> {ms since when it is the first, ms since when for this reason}
-- The first job of a queue, and why nothing can start it; nobody having looked for `fresh` ms, both begin anew. A reason
-- that is new is an event too.
-- Keys: head, events.
register('head', function(_, argv)
  local queue, id, code, t = argv[1], argv[2], argv[3], now()
  local key = K.head(queue)
  local h = redis.call('HMGET', key, 'id', 'first', 'code', 'since', 'seen')
  local seen = tonumber(h[5] or 0)
  local goes_on = h[1] == id and seen <= t and t - seen <= tonumber(argv[5])
  local same = goes_on and h[3] == code
  local first, since = goes_on and h[2] or num(t), same and h[4] or num(t)
  redis.call('HSET', key, 'id', id, 'first', first, 'code', code, 'since', since, 'seen', num(t), 'text', argv[4])
  if code ~= '' and not same then tell_state(id, queue, 'BLOCKED', argv[4]) end
  return {tonumber(first), tonumber(since)}
end)

-- cancel_ready(id, reason) -> 1; 0: it waits in the index no more. A job that a node has taken is left alone.
-- Keys: those of cancel.
register('cancel_ready', function(_, argv)
  local h = redis.call('HMGET', K.job(argv[1]), 'state', 'queue', 'class', 'ending')
  if h[1] ~= 'RUNNABLE' or h[4] then return 0 end
  decide_end(argv[1], 'REVOKED', argv[2])
  withdraw(argv[1], h[2], h[3])
  return 1
end)
