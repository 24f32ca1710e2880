package objects

import (
	"regexp"
	"strconv"
	"strings"
)

var (
	yamlLine = regexp.MustCompile(`line (\d+): `)
	// yamlParserError are the errors of the YAML library's parser, which counts lines from 0. Its scanner, and all that
	// comes after, count from 1.
	yamlParserError = regexp.MustCompile(`did not find expected (<|node content|key|'-' indicator|',' or)`)
)

// YAMLError takes an error of sigs.k8s.io/yaml, or of what decodes with it, apart: the line in the text, from 1, or 0 if
// the error names none, and what is wrong there.
func YAMLError(err error) (line int, why string) {
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		if yamlParserError.MatchString(text) {
			line++
		}
	}
	why = yamlLine.ReplaceAllString(text, "")
	for _, wrapping := range []string{"error converting YAML to JSON: ", "yaml: ", "unmarshal errors:\n"} {
		why = strings.ReplaceAll(why, wrapping, "")
	}
	return line, strings.TrimSpace(why)
}
