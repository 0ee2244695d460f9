package session

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootClock counts the time a machine sleeps and no steps of its wall clock, which Go's clocks do not do together.
func bootClock() time.Time {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return time.Now()
	}
	return time.Unix(ts.Unix())
}
