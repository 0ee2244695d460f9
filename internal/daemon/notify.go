package daemon

import (
	"context"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
)

// notifyReady tells systemd, if it started us, that the socket answers.
func (d *Daemon) notifyReady() {
	if _, err := sdnotify.SdNotify(false, sdnotify.SdNotifyReady); err != nil {
		d.log.Warn("tell systemd that fwd is ready", "err", err)
	}
}

// feedWatchdog tells systemd that fwd lives, twice in each WatchdogSec, until
// ctx ends: a daemon whose lock nobody gives back does not.
func (d *Daemon) feedWatchdog(ctx context.Context) error {
	defer sdnotify.SdNotify(false, sdnotify.SdNotifyStopping)
	every, err := sdnotify.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	tick := time.NewTicker(every / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			d.mu.Lock()
			d.mu.Unlock()
			sdnotify.SdNotify(false, sdnotify.SdNotifyWatchdog)
		}
	}
}
