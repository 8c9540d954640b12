"""The sections of the page. comparison and outcome_of_runs are about several runs, all others about one."""
