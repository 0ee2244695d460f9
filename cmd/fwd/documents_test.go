package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"fwd/internal/daemon"
)

// What the documents tell people to type exists: the command, its flags, and so many
// words. cli.md is made from the commands anyway.
func TestDocumentsTellOfCommandsThatExist(t *testing.T) {
	found := 0
	for path, text := range documents(t) {
		for n, line := range strings.Split(text, "\n") {
			for _, words := range commandsIn(line) {
				found++
				if err := typed(words); err != nil {
					t.Errorf("%s:%d: fwd %s: %v", path, n+1, strings.Join(words, " "), err)
				}
			}
		}
	}
	if found < 120 {
		t.Errorf("only %d commands were found in all documents; are they read right?", found)
	}
}

// Nor would the test above pass a document with a mistake in it.
func TestMistakesInDocumentsAreSeen(t *testing.T) {
	for _, line := range []string{
		"    fwd exposse 22",
		"    nas$ fwd expose 22 --nam nas",
		"text `fwd connect` and `fwd connect a b c` text",
		"    FWD_INVITE=$(cat x) sudo fwd up --cfg x",
		"    rsync -e 'fwd shh' a b",
		"    ssh vps fwd invite | fwd join --was laptop",
	} {
		wrong := 0
		for _, words := range commandsIn(line) {
			if typed(words) != nil {
				wrong++
			}
		}
		if wrong != 1 {
			t.Errorf("%d mistakes seen in %q", wrong, line)
		}
	}
}

// The configurations in the documents are right.
func TestDocumentsShowRightConfigurations(t *testing.T) {
	blocks := regexp.MustCompile("(?ms)^```toml\n(.*?)^```")
	found := 0
	for path, text := range documents(t) {
		for _, block := range blocks.FindAllStringSubmatch(text, -1) {
			found++
			file := filepath.Join(t.TempDir(), "fwd.toml")
			if err := os.WriteFile(file, []byte(block[1]), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := daemon.CheckConfig(daemon.Home{}, file); err != nil {
				t.Errorf("%s: %v in\n%s", path, err, block[1])
			}
		}
	}
	if found == 0 {
		t.Error("no configuration was found")
	}
}

// What is printed with --json here, and not by the daemon, stands in docs/json.md too.
func TestWhatCommandsPrintAsJSONIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	for command, v := range map[string]any{
		"fwd id": identity{}, "fwd version": versionOf{}, "fwd service status": serviceState{}, "fwd owner export": exported{}, "demo": step{},
	} {
		line := regexp.MustCompile("(?m)^.*`" + command + "`.*$").FindString(string(page))
		kind := reflect.TypeOf(v)
		for i := range kind.NumField() {
			if name := kind.Field(i).Tag.Get("json"); name != "event" && !strings.Contains(line, "`"+name+"`") {
				t.Errorf("docs/json.md does not say that %s prints %s", command, name)
			}
		}
	}
}

// The table of exit codes says what every help text does, and what may be tried again.
func TestExitCodesAreToldTheSameEverywhere(t *testing.T) {
	page, err := os.ReadFile("../../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range exitStatus {
		text, again, _ := strings.Cut(e.text, ": ")
		row := fmt.Sprintf("\n| %d | %s | ", e.code, text)
		switch {
		case e.code > daemon.ExitNoDaemon: // signals
			continue
		case again == "do not retry":
			row += "no |"
		case again == "retry":
			row += "yes |"
		}
		if !strings.Contains(string(page), row) {
			t.Errorf("docs/operate.md does not have the row %q", row)
		}
	}
}

// Links within the documents lead somewhere.
func TestDocumentsLinkWhatIsThere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
	for path, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// Who follows a document gets one file that runs anywhere: with cgo, which is what Go does
// where there is a C compiler, the program wants the system's C library.
func TestDocumentsBuildOneFile(t *testing.T) {
	found := 0
	for path, text := range documents(t) {
		for n, line := range strings.Split(text, "\n") {
			if !strings.Contains(line, "go build -") {
				continue
			}
			found++
			if !strings.Contains(line, "CGO_ENABLED=0") {
				t.Errorf("%s:%d: built with cgo: %s", path, n+1, line)
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d builds were found", found)
	}
}

// Every variable that fwd reads is in operate.md and, but for those that only its units
// set, in "fwd --help".
func TestEveryVariableIsTold(t *testing.T) {
	reads := regexp.MustCompile(`(?:Getenv|LookupEnv)\("((?:FWD_|NO_)[A-Z_]+)"\)`)
	operate := documents(t)["../../docs/operate.md"]
	help := map[string]bool{"FWD_CONFIG": true, "FWD_SYSTEM": true}
	for _, row := range envRows(newRoot(&app{out: newOutput(os.Stdout, os.Stderr)})) {
		help[row[0]] = true
	}
	found := map[string]bool{}
	for _, file := range sources(t, ".", "../../internal/daemon") {
		for _, m := range reads.FindAllStringSubmatch(file, -1) {
			found[m[1]] = true
		}
	}
	for name := range found {
		if !strings.Contains(operate, "`"+name+"`") {
			t.Errorf("%s is not in docs/operate.md", name)
		}
		if !help[name] {
			t.Errorf("%s is not in fwd --help", name)
		}
	}
	if len(found) < 8 {
		t.Errorf("only %v were found", found)
	}
}

// Every metric is in operate.md's table.
func TestEveryMetricIsTold(t *testing.T) {
	made := regexp.MustCompile(`(?:gauge|counter)\("(\w+)"`)
	operate := documents(t)["../../docs/operate.md"]
	found := 0
	for _, file := range sources(t, "../../internal/daemon") {
		for _, m := range made.FindAllStringSubmatch(file, -1) {
			found++
			if !strings.Contains(operate, "`fwd_"+m[1]) {
				t.Errorf("fwd_%s is not in docs/operate.md", m[1])
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d were found", found)
	}
}

// sources are the texts of these folders' Go files, tests aside.
func sources(t *testing.T, folders ...string) (list []string) {
	t.Helper()
	for _, folder := range folders {
		paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, string(b))
		}
	}
	return list
}

// documents are the texts for people, by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for _, path := range append(paths, "../../README.md", "../../README.zh-CN.md", "../../SECURITY.md") {
		if filepath.Base(path) == "cli.md" {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		list[path] = strings.ReplaceAll(string(b), "\r\n", "\n")
	}
	return list
}

var (
	inlineCode = regexp.MustCompile("`([^`]+)`")
	// A command stands at the beginning, after a prompt, in quotes, after a pipe, sudo or
	// a variable, and in another machine's shell.
	beforeFwd = regexp.MustCompile(`(?:^|[\w-]+[$#] |^- |['(|] ?|&& |; |sudo |[A-Z_]+=\S+ |\) |=|ssh vps |: |/usr/local/bin/|/volume1/fwd/)fwd ([a-z]|COMMAND)`)
)

// commandsIn are the words behind each fwd that a line of a document has one type.
func commandsIn(line string) (list [][]string) {
	var codes []string
	if text, ok := strings.CutPrefix(line, "    "); ok {
		codes = []string{strings.TrimSpace(text)}
	} else {
		for _, m := range inlineCode.FindAllStringSubmatch(line, -1) {
			codes = append(codes, m[1])
		}
	}
	for _, code := range codes {
		code, _, _ = strings.Cut(code, "  #") // a comment
		for _, at := range beforeFwd.FindAllStringSubmatchIndex(code, -1) {
			words := code[at[2]:]
			if end := strings.IndexAny(words, "|>\"')&;"); end >= 0 {
				words = words[:end]
			}
			words, _, _ = strings.Cut(words, " # ")
			list = append(list, strings.Fields(words))
		}
	}
	return list
}

// typed is what fwd would say to these words, without doing anything.
func typed(words []string) error {
	if strings.ToUpper(words[0]) == words[0] || words[0] == "…" || words[0] == "--help" {
		return nil // fwd COMMAND
	}
	root := newRoot(&app{out: newOutput(os.Stdout, os.Stderr)})
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if cmd == root {
		return unknownCommand(root, words)
	}
	if cmd.DisableFlagParsing || len(rest) == 0 { // a command's name alone tells of it
		return nil
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if args := cmd.Flags().Args(); len(args) > 0 && !cmd.HasSubCommands() {
		return cmd.ValidateArgs(args)
	}
	return nil
}
