//go:build !windows

package main

import (
	"context"
	"os"
	"strings"
)

// managed: systemd (Type=notify) or launchd has started this.
func managed() bool {
	return os.Getenv("NOTIFY_SOCKET") != "" || strings.HasPrefix(os.Getenv("XPC_SERVICE_NAME"), serviceName)
}

// underManager: a service manager here starts a program as a shell would.
func (a *app) underManager(ctx context.Context, f func(context.Context) error) error { return f(ctx) }
