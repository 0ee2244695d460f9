package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newSpeed(a *app) *cobra.Command {
	var req daemon.SpeedRequest
	cmd := &cobra.Command{
		Use:     "speed NAME",
		GroupID: groupForward,
		Short:   "measure how much the ways to a machine carry",
		Long: `Measure how much the paths to a machine carry, through a relay and direct, each
direction for three seconds. The machine itself is measured with, no service of it;
what a path carries meanwhile is beside it. Members may, guests may not.`,
		Example: "fwd speed nas\nfwd speed nas-box --path direct --for 10s\nfwd speed nas --json",
		Annotations: map[string]string{
			partArgs:  "NAME\tmachine, service or peer ID",
			partExits: "3 4 6",
		},
		Args: words(1, 1),
	}
	cmd.Flags().StringVar(&req.Path, "path", "auto", "`KIND` of path: auto (both), direct or relay")
	span := spanVar(cmd, "for", "how long each direction is measured, 10s at most; default 3s")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Name, req.For = args[0], time.Duration(*span)
		return list(cmd.Context(), a, req, "speed", func(s daemon.Speed) {
			a.out.table(speedRows(s))
		})
	}
	return cmd
}

func speedRows(s daemon.Speed) [][]string {
	rows := [][]string{{s.Machine, "DOWN", "UP", "RTT", "BY"}}
	for _, p := range s.Paths {
		by, round := p.Error, ""
		if p.Path != nil {
			way := *p.Path
			round, way.RTT = rtt(way.RTT), 0
			if p.Error == "" {
				by = pathWords(&way)
			}
		}
		rows = append(rows, []string{p.Kind, bitsWord(p.Down), bitsWord(p.Up), round, by})
	}
	return rows
}

// bitsWord prints a rate as lines are sold: 94 Mbit/s.
func bitsWord(bits int64) string {
	if bits <= 0 {
		return ""
	}
	v, unit := float64(bits), "bit/s"
	for _, next := range []string{"kbit/s", "Mbit/s", "Gbit/s"} {
		if v < 1000 {
			break
		}
		v, unit = v/1000, next
	}
	digits := 0
	if v < 10 && unit != "bit/s" {
		digits = 1
	}
	return fmt.Sprintf("%s %s", strconv.FormatFloat(v, 'f', digits, 64), unit)
}
