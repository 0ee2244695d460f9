//go:build !windows

package main

import "context"

// underManager: a service manager here starts a program as a shell would.
func (a *app) underManager(ctx context.Context, f func(context.Context) error) error { return f(ctx) }
