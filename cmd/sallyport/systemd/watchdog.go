package systemd

import (
	"context"
	"os"
	"strconv"
	"time"
)

// Watchdog tells the service manager, twice in each WatchdogSec= of the unit, that the service is alive, and returns when
// ctx ends or the service manager cannot be told. healthy is asked before each time: an error from it, or no answer, lets the time
// run out, and systemd kills and restarts the service. Without WatchdogSec= it only waits for ctx to end.
func Watchdog(ctx context.Context, healthy func(context.Context) error) error {
	interval := watchdogInterval()
	if interval == 0 {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if healthy(ctx) == nil {
			if err := send(alive); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// watchdogInterval is half the time after which systemd gives this process up (sd_watchdog_enabled(3)); 0 is never.
func watchdogInterval() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 0 {
		return 0
	}
	return time.Duration(us) * time.Microsecond / 2
}
