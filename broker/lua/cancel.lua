-- cancel(id, reason, terminate 0 or 1, keep s) -> "stored" (not taken in yet), "ended", "cancelled" (was waiting),
-- "running" (left alone: terminate is 0; it will not run again) or "stopping"
-- Keys: job, cancelled, class, heads, counts, demands, delayed, expiring, blocked, dependants, outbox; channels duty,
-- control.
register('cancel', function(_, argv)
  return cancel_job(argv[1], argv[2], argv[3] == '1', argv[4])
end, {'allow-oom'})
