package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"fwd/internal/doctor"
	"fwd/internal/punch"
)

// Scripts read what docs/json.md says: every field that there is. The doctor's are beside its words.
func TestEveryJSONFieldIsDocumented(t *testing.T) {
	everyField(t, "../../docs/json.md", Event{}, Status{}, LsEntry{}, PeerEntry{}, InviteEntry{}, NetworkEntry{}, Joined{}, Speed{}, Reloaded{}, Checked{})
	everyField(t, "../../docs/operate.md", doctor.Report{})
}

func everyField(t *testing.T, file string, values ...any) {
	t.Helper()
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(in reflect.Type) {
		for in.Kind() == reflect.Pointer || in.Kind() == reflect.Slice {
			in = in.Elem()
		}
		if in.Kind() != reflect.Struct || seen[in] || !strings.HasPrefix(in.PkgPath(), "fwd/") {
			return
		}
		seen[in] = true
		for i := range in.NumField() {
			f := in.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && !strings.Contains(string(page), "`"+name+"`") && !strings.Contains(string(page), `"`+name+`"`) {
				t.Errorf("%s.%s is not in %s: %s", in.Name(), f.Name, file, name)
			}
			walk(f.Type)
		}
	}
	for _, v := range values {
		walk(reflect.TypeOf(v))
	}
}

// One table has all words of what status says about the NAT.
func TestEveryWordAboutTheNATIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/paths.md")
	if err != nil {
		t.Fatal(err)
	}
	words := map[string][]any{
		"nat.reachability": {"public", "private"},
		"nat.udp":          {punch.None, punch.Independent, punch.Dependent, "blocked", "unknown"},
		"nat.filtering":    {punch.Anybody, punch.SameAddress, punch.SamePort, "unknown"},
		"nat.ports":        {"kept", "changed", punch.Sequential, punch.Block, punch.Random, "unknown"},
		"nat.port_mapping": {"none", "found", "mapped"},
	}
	for field, list := range words {
		rows := regexp.MustCompile("\\n\\| `" + field + "`.*(\\n\\| \\|.*)*").FindString(string(page))
		for _, word := range list {
			if !strings.Contains(rows, fmt.Sprintf("`%s`", word)) {
				t.Errorf("%s: docs/paths.md does not have %q", field, word)
			}
		}
	}
}

// And every code of a failure, in the row of the exit code that it comes with, and in no other.
func TestEveryFailuresCodeIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	exits := map[string]int{"ExitFailed": ExitFailed, "ExitUsage": ExitUsage, "ExitUnknownName": ExitUnknownName, "ExitRefused": ExitRefused,
		"ExitIdentityChanged": ExitIdentityChanged, "ExitUnreachable": ExitUnreachable, "ExitLocalPort": ExitLocalPort, "ExitNoDaemon": ExitNoDaemon}
	rows := map[string][]int{} // the rows in which a code stands
	for _, row := range regexp.MustCompile(`(?m)^\| (\d) \| (.*) \|$`).FindAllStringSubmatch(string(page), -1) {
		for _, code := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(row[2], -1) {
			exit, _ := strconv.Atoi(row[1])
			rows[code[1]] = append(rows[code[1]], exit)
		}
	}
	written := regexp.MustCompile(`(?:fail\((Exit\w+), |Code: *|Code\w+ = )"([a-z-]+)"(?:, Exit: (?:daemon\.)?(Exit\w+))?`)
	found := 0
	for _, folder := range []string{".", "../../cmd/fwd"} {
		files, err := filepath.Glob(folder + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range written.FindAllStringSubmatch(string(source), -1) {
				found++
				exit, told := exits[m[1]+m[3]] // not where the code alone is written
				if len(rows[m[2]]) != 1 || told && rows[m[2]][0] != exit {
					t.Errorf("%s: the code %s comes with %s, and stands in docs/json.md at %v", file, m[2], m[1]+m[3], rows[m[2]])
				}
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d codes were found; are they read right?", found)
	}
}
