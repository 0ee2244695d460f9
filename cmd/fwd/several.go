package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"fwd/internal/daemon"
)

// Several services in one connect: nas:2222 web:8080. A name has no colon, so
// the first one ends it.

// oneOrSeveral is connect's Args.
func oneOrSeveral(cmd *cobra.Command, args []string) error {
	if len(args) == 0 || !strings.Contains(args[0], ":") {
		return words(1, 2)(cmd, args)
	}
	for _, w := range args {
		if name, local, ok := strings.Cut(w, ":"); !ok || name == "" || local == "" || local == "-" {
			return usageError("fwd connect nas:2222 web:8080", "%q: each of several is NAME:LOCAL", w)
		}
	}
	return nil
}

// connectSeveral holds them together. One that cannot be had ends them all; one
// that another terminal ends leaves the others.
func (a *app) connectSeveral(ctx context.Context, req daemon.ConnectRequest, args []string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range args {
		req := req
		name, local, _ := strings.Cut(w, ":")
		local, err := wholePath(local)
		if err != nil {
			return err
		}
		req.Name, req.Local = name, local
		label := ""
		if len(args) > 1 {
			label = name
		}
		g.Go(func() error { return a.connect(ctx, req, label) })
	}
	return g.Wait()
}
